"""HASTE's attention: queries and keys of blocks and of a teacher, the loss against transformers' own attention, pictures from the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gsnr import table
from gsnr.probes.common.command import main as probe
from gsnr.train import losses, opening, presets
from gsnr.train import teacher as teachers
from gsnr.train.command import main
from gsnr.train.config import ModelConfig, resolve, resolve_alignment
from gsnr.train.contracts.problem import made, sit
from gsnr.train.cost import main as cost
from gsnr.train.data import cache
from gsnr.train.prepare.command import main as prepare
from gsnr.train.runs import checkpoint
from gsnr.train.teacher_attention import AttentiveTeacher, of_cache
from tests.conftest import call
from tests.train.dino_files import save_dino, with_positions_for
from tests.train.in_numpy import f64, softmax
from tests.train.run_files import tensors


@pytest.mark.parametrize("recompute", [False, True])
def test_queries_and_keys_leave_the_velocity_as_it_is(recompute: bool) -> None:
    """Bit for bit, and the gradient of it too; they are what the block's linear layer gives."""
    x, t, y = torch.randn(2, 4, 4, 4), torch.rand(2), torch.tensor([1, 2])
    found = []
    for taps in ((), (2, -2, -3)):
        model = sit()
        model.checkpointing = recompute
        seen = []
        model.blocks[1].attn.qkv.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        velocity, hidden = model.forward_with_taps(x, t, y, taps=taps)
        velocity.square().sum().backward()
        found.append((velocity, [p.grad for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0]) and all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert hidden.keys() == {2, -2, -3} and torch.equal(hidden[-2], seen[0]) and hidden[-2].shape == (2, 4, 24)
    _, early = sit().forward_with_taps(x, t, y, taps=(-2,), stop=True)
    assert torch.equal(early[-2], hidden[-2])
    with pytest.raises(ValueError, match="tap -4 does not exist: this model has blocks 1 to 3"):
        sit().forward_with_taps(x, t, y, taps=(-4,))


@pytest.mark.parametrize("registers", [0, 2])
def test_the_loss_against_the_attention_that_transformers_gives(registers: int, tmp_path: Path) -> None:
    """Its probabilities without class token and registers, summing to 1 again; three of the model's heads against two of the teacher's."""
    model = save_dino(tmp_path, registers)
    teacher = AttentiveTeacher(teachers.load(str(tmp_path)))
    pictures = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    grid, layers = 4, (1, 2)
    got = teacher.qkv(pictures, layers, grid)
    mean, std = (np.array(teachers.IMAGENET[key]) for key in ("image_mean", "image_std"))
    pixels = torch.from_numpy(((pictures.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    resized = torch.nn.functional.interpolate(pixels, size=14 * grid, mode="bicubic")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        seen = with_positions_for(model, grid)(pixel_values=resized, output_attentions=True).attentions
    student = torch.randn(3, grid * grid, 3 * 12)
    for layer in layers:
        p = f64(seen[layer - 1])[:, :, 1 + registers :, 1 + registers :]
        p = p / p.sum(-1, keepdims=True)
        q, k, _ = np.split(f64(student), 3, axis=-1)
        expected = np.zeros(3)
        for b in range(3):
            for head in range(2):
                own = slice(4 * head, 4 * head + 4)
                logits = q[b][:, own] @ k[b][:, own].T / 2
                expected[b] -= (p[b, head] * np.log(softmax(logits))).sum(-1).mean() / 2
        np.testing.assert_allclose(f64(losses.attention_cross_entropy(student, 3, got[layer], 2)), expected, rtol=1e-4)


def test_a_loss_is_the_mean_over_pairs_that_end_at_the_tap() -> None:
    alignment = made("attention", tap=3, layers=(5, 12))
    assert alignment.taps == (3, -2, -3) and not list(alignment.parameters())
    hidden = {k: torch.randn(2, 4, 24) for k in (-2, -3)}
    batch = {f"teacher_qkv_{k}": torch.randn(2, 4, 21) for k in (5, 12)}
    each = [losses.attention_cross_entropy(hidden[tap], 2, batch[f"teacher_qkv_{k}"], 7) for tap, k in ((-2, 5), (-3, 12))]
    torch.testing.assert_close(alignment.loss(hidden, batch), (each[0] + each[1]) / 2)


def test_pairs_of_the_published_sizes() -> None:
    """HASTE's, counted from 0: blocks 2, 3, 4 with layers 7, 9, 11 of B; 4 to 7 with 8 to 11 of L and XL."""
    for size, blocks, layers in (("b2", [2, 3, 4], [7, 9, 11]), ("l2", [4, 5, 6, 7], [8, 9, 10, 11]), ("xl2", [4, 5, 6, 7], [8, 9, 10, 11])):
        config = resolve(presets.find(f"haste-{size}"))
        repa, attention = config.alignment["parts"]
        assert repa["name"] == "repa" and repa["tap"] == attention["tap"] == blocks[-1] + 1 and repa["weight"] == attention["weight"] == 0.5
        pairs = made("attention", model=replace(config.model, input_size=4), tap=attention["tap"], layers=attention["layers"]).pairs  # type: ignore
        assert [(-k - 1, layer - 1) for k, layer in pairs.items()] == list(zip(blocks, layers, strict=True))
        assert config.schedule["at"] == (100_000 if size == "b2" else 250_000)


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of pictures, mirrored too, whose teacher is a small DINOv2."""
    folder, rng = tmp_path_factory.mktemp("online"), np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "pictures" / name / f"{i}.png")
    save_dino(folder / "dino", num_hidden_layers=12, hidden_size=6)
    words = ("--data", folder / "pictures", "--vae", "demo", "--teacher", folder / "dino", "--resolution", 64, "--patch", 2, "--heldout", 4)
    assert call(prepare, *words, "--features", "online", "--flip", "--out", folder / "cache", "--workers", 0) == 0
    return folder / "cache"


PARTS = '[{"name": "repa", "projector_width": 8}, {"name": "attention", "layers": [1, 2], "tap": 2}, {"name": "repi", "tap": 1, "scaffold": 2}]'
MODEL = ("--model.input-size", 8, "--model.patch-size", 2, "--model.num-classes", 2)
HASTE = ("--preset", "smoke", "--trackers", "none", "--batch", 4, *MODEL, "--alignment", "multi", "--alignment.parts", PARTS)


def test_a_run_on_pictures_resumes_is_probed_and_measured(online: Path, tmp_path: Path) -> None:
    """The teacher is in no checkpoint; attention is a target of a probe like any other. REPI's phase changes where the run is cut."""
    words = (*HASTE, "--data.path", online, "--schedule", "stop", "--schedule.at", 3)
    whole = ("--gsnr-every", 4, "--gsnr-images", 4, "--out", tmp_path / "whole")
    assert call(main, *words, *whole, "--steps", 4) == 0
    assert call(main, *words, "--out", tmp_path / "parts", "--steps", 2) == 0
    assert call(main, *words, "--out", tmp_path / "parts", "--steps", 4, "--resume", "--data.workers", 1) == 0
    one, two = (tensors(checkpoint.locate(tmp_path / run)) for run in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())
    assert not any("teacher" in name for name in one)
    asked = ("--targets", "attention,repa", "--bins", 1, "--n-images", 4, "--fit-samples", 64, "--fit-steps", 2, "--controls", "none")
    assert call(probe, "--ckpt", tmp_path / "whole", "--probe", "alignment", *asked, "--projector", "fit", "--out", tmp_path / "probes") == 0
    cells = table.read(tmp_path / "probes" / "alignment.parquet")
    assert {("attention", "none"), ("repa", "fit")} == set(zip(cells["target"], cells["projector"], strict=True))


def test_a_mirrored_view_is_a_mirrored_picture(online: Path) -> None:
    _, splits = opening.open_prepared(online, ("G3",))
    plain, mirrored = (splits["train"].take(np.arange(2), ("G3", cache.IMAGE), view) for view in (0, 1))
    assert np.array_equal(plain[cache.IMAGE][:, :, ::-1], mirrored[cache.IMAGE]) and plain["G3"].shape == (2, *splits["train"].header.groups["G3"])


def test_what_has_no_attention_is_one_line(online: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^teacher 'demo' is a convolutional network, without attention; make a cache with gsnr prepare --teacher"):
        call(main, "--preset", "haste-demo", "--data.demo-train", 256, "--data.demo-heldout", 256, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--rows haste: its step runs a teacher on pictures, or several views of an image"):
        call(cost, "--rows", "sit,haste", "--macs-only")
    header = cache.read_header(online)
    for changes, said in (
        ({"teacher": ""}, "its cache has no teacher, whose attention is asked for"),
        ({"dtype": "float16"}, "its cache holds no pictures, which the teacher's attention is computed from"),
        ({"teacher_sha": "0"}, "that is another one now"),
    ):
        with pytest.raises(ValueError, match=said):
            of_cache(replace(header, **changes))
    with pytest.raises(ValueError, match=r"alignment.layers 13: teacher '.*' has layers 1 to 12"):
        made("attention", tap=1, layers=(13,)).attach(of_cache(header))
    for layers in ((1, 2), (0,)):
        with pytest.raises(ValueError, match=r"alignment.layers .*: numbers from 1, at most as many as the tap, 1"):
            resolve_alignment({"name": "attention", "tap": 1, "layers": layers}, ModelConfig(depth=3))
