"""`gsnr sample --n` and `--grid`: what is written, that it depends on the seed and the sample's number alone, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.run import get_args_parser

from gsnr.train import sample, samplers
from gsnr.train.data import rng
from gsnr.train.guidance import Guidance
from gsnr.train.sampling import output, recipe, run, shards
from gsnr.train.sampling.eight_bit import to_uint8
from gsnr.train.sampling.recipe import Recipe
from gsnr.train.sampling.subject import Subject, open_subject
from tests.conftest import REPO, call
from tests.train.run_files import hash_again

N = 20
WORDS = ("--n", N, "--shard", 3, "--batch", 2, "--sampler", "sde", "--sampling-steps", 4, "--cfg", 1.5, "--cfg-interval", "0,0.7", "--seed", 7)


@pytest.fixture(scope="module")
def subject(smoke_run: Path) -> Subject:
    return open_subject(smoke_run, "ema", None)


@pytest.fixture(scope="module")
def whole(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn in one go, by one process."""
    out = tmp_path_factory.mktemp("whole") / "samples.npz"
    assert call(sample.main, "--ckpt", smoke_run, *WORDS, "--out", out) == 0
    assert [p.name for p in out.parent.iterdir()] == [out.name], "nothing is left beside it"
    return out


def by(**words: Any) -> Recipe:
    usual = {"sampler": "heun", "steps": 3, "guidance": Guidance(), "classes": "balanced", "uint8": "repa", "seed": 0}
    return Recipe(**(usual | words))


def test_what_is_written(whole: Path, subject: Subject) -> None:
    with np.load(whole) as stored:
        assert set(stored) == {"arr_0", "labels", "about"}
        images, labels, about = stored["arr_0"], stored["labels"], json.loads(str(stored["about"]))
    assert images.shape == (N, 64, 64, 3) and images.dtype == np.uint8 and images.std() > 1
    assert labels.tolist() == [i % 10 for i in range(N)]
    loaded = subject.loaded
    wanted = {
        **{"checkpoint_sha256": loaded.sha, "step": 30, "weights": "ema", "sampler": "sde", "steps": 4, "guidance": 1.5, "seed": 7, "n": N},
        **{"guidance_interval": [0.0, 0.7], "guided_channels": "all", "classes": "balanced", "uint8": "repa", "precision": "no", "tf32": False},
        **{"vae": "demo", "vae_sha256": subject.frozen.sha, "batch": 2, "device": "cpu"},
    }
    assert {key: about[key] for key in wanted} == wanted and about["versions"]["torch"] == torch.__version__


def test_the_images_are_those_of_the_equations(whole: Path, subject: Subject) -> None:
    """Sample 13 by itself, step by step from the docstring of `sde`, decoded and truncated. One level, for batches of 1 and 2 round otherwise."""
    noise = [torch.from_numpy(rng.normals(7, "sample", np.array([13]), step, subject.shape)).double() for step in range(4)]
    x, times = noise[0], [1.0, 0.68, 0.36, 0.04, 0.0]
    with torch.no_grad():
        for k, t in enumerate(times[:-1]):
            t_B, h = torch.tensor([t]), times[k + 1] - t
            v = subject.loaded.model(x.float(), t_B, torch.tensor([3])).double()
            if t <= 0.7:
                null = subject.loaded.model(x.float(), t_B, torch.tensor([10])).double()
                v = null + 1.5 * (v - null)
            x = x + h * ((2 - t) * v + x) + (0 if k == 3 else (2 * t * -h) ** 0.5 * noise[k + 1])
        pixels = subject.frozen.decode(subject.scaling.raw(x.float()))
    levels = np.clip(255 * (pixels.double().numpy() + 1) / 2, 0, 255)[0].transpose(1, 2, 0).astype(int)
    with np.load(whole) as stored:
        assert np.abs(stored["arr_0"][13].astype(int) - levels).max() <= 1


def test_a_sample_depends_on_its_number_and_the_seed(subject: Subject) -> None:
    """Batches of 1 and 16, to 1e-4 of latents of size 1: matrix products round by their shape. dopri5 solves blocks of 32, so bit for bit."""
    numbers = np.arange(16)
    for name in ("heun", "sde"):
        together = recipe.latents(subject, by(sampler=name), numbers, "cpu")
        alone = torch.cat([recipe.latents(subject, by(sampler=name), numbers[i : i + 1], "cpu") for i in numbers])
        assert torch.allclose(together, alone, atol=1e-4)
        assert not torch.allclose(together, recipe.latents(subject, by(sampler=name, seed=1), numbers, "cpu"), atol=0.1)
    blocks = by(sampler="dopri5", steps=None)
    found = recipe.latents(subject, blocks, np.array([40, 3, 31]), "cpu")
    assert torch.equal(found[1:2], recipe.latents(subject, blocks, np.array([3]), "cpu"))
    assert torch.equal(found[0], recipe.latents(subject, blocks, np.arange(32, 64), "cpu")[8])


def test_classes(subject: Subject) -> None:
    numbers = np.arange(5000)
    assert np.bincount(by().labels(numbers, 10)).tolist() == [500] * 10
    assert by(classes=(7, 2)).labels(numbers[:3], 10).tolist() == [7, 2, 7]
    random = by(classes="random").labels(numbers, 10)
    assert np.array_equal(by(classes="random").labels(numbers[70:80], 10), random[70:80])
    assert 400 < np.bincount(random, minlength=10).min() < np.bincount(random).max() < 600, "five standard deviations"


def test_rules_of_uint8() -> None:
    """Against the formulas in float64, on values that are no ties."""
    x = torch.linspace(-1.3, 1.3, 3 * 40).view(1, 3, 8, 5)
    exact = x.double().numpy().transpose(0, 2, 3, 1)
    for rule, wanted in (
        ("repa", np.clip(255 * (exact + 1) / 2, 0, 255).astype(np.uint8)),
        ("sit", np.clip(127.5 * exact + 128, 0, 255).astype(np.uint8)),
        ("round", np.rint(255 * (np.clip(exact, -1, 1) + 1) / 2).astype(np.uint8)),
    ):
        assert np.array_equal(to_uint8(x, rule), wanted), rule
    with pytest.raises(ValueError, match="--uint8 'floor' does not exist; choose from repa, sit, round"):
        to_uint8(x, "floor")


def forked(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def test_two_processes_draw_what_one_draws(smoke_run: Path, whole: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        call(sample.main, "--ckpt", smoke_run, *WORDS, "--out", tmp_path / "samples.npz")

    children = [forked(lambda rank=rank: work(rank)) for rank in (0, 1)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert (tmp_path / "samples.npz").read_bytes() == whole.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_torchrun_takes_the_command_of_the_page() -> None:
    """Without the `--` torchrun says that --n is ambiguous."""
    (line,) = re.findall(r"^ +torchrun (.*)$", (REPO / "docs" / "sampling.md").read_text(), re.M)
    found = get_args_parser().parse_args(line.split())
    assert found.module and found.training_script == "train.sample" and "--n" in found.training_script_args


def test_kill_minus_9_and_the_same_command_again(smoke_run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kills: each as soon as another shard is there, or at the start, or while the npz is written."""
    out = tmp_path / "samples.npz"
    real = shards.Workplace.write

    def slowly(self: shards.Workplace, *words: Any) -> None:
        real(self, *words)
        time.sleep(0.2)

    monkeypatch.setattr(shards.Workplace, "write", slowly)
    reached = []
    for kill in range(10):
        child = forked(lambda: call(sample.main, "--ckpt", smoke_run, *WORDS, "--out", out))
        until = time.monotonic() + (60 if kill % 3 else 0.05)
        while time.monotonic() < until and child.is_alive() and len(list(tmp_path.glob(".samples.npz.sampling/[0-9]*"))) <= max(reached, default=0):
            time.sleep(0.005)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        reached.append(len(list(tmp_path.glob(".samples.npz.sampling/[0-9]*"))))
    assert reached == sorted(reached) and len(set(reached)) > 4, "it was killed at different stages, and lost nothing that was finished"
    with pytest.raises(ValueError, match=r"samples.npz: was begun, in .*, with guidance 1.5, not 2.0; name another --out, or delete that folder"):
        call(sample.main, "--ckpt", smoke_run, *WORDS, "--cfg", 2, "--out", out)
    assert call(sample.main, "--ckpt", smoke_run, *WORDS, "--out", out) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


def test_images_that_lie_channels_first_in_memory_are_kept_as_they_are(tmp_path: Path) -> None:
    """As a GPU's decoder leaves them: safetensors would write the memory, and the image would come back as nine small ones."""
    images_NHWC = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8).transpose(0, 2, 3, 1)
    place = shards.Workplace(tmp_path / "samples.npz")
    place.aside.mkdir()
    place.write(0, images_NHWC, "0")
    assert np.array_equal(place.read(0)[0], images_NHWC)


def test_a_damaged_shard_is_named_and_a_finished_output_only_tidied(
    smoke_run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "samples.npz"
    words = ("--ckpt", smoke_run, *WORDS, "--out", out)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt, match=r"finished shards stay in .*; the same command goes on"):
        patched.setattr(run, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        call(sample.main, *words)
    shard = tmp_path / ".samples.npz.sampling" / "00002.safetensors"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"00002.safetensors: damaged .*; delete it and run the same command again"):
        call(sample.main, *words)
    shard.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(shards.Workplace, "remove", lambda self: None)
        assert call(sample.main, *words) == 0
    assert out.read_bytes() == whole.read_bytes() and shard.is_file()
    capsys.readouterr()
    assert call(sample.main, *words) == 0
    assert "already drawn with these options" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ["samples.npz"]
    with pytest.raises(ValueError, match=r"samples.npz: exists; name a new one"):
        call(sample.main, *words, "--seed", 8)


def test_a_folder_of_pngs(smoke_run: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    out.mkdir()
    assert call(sample.main, "--ckpt", smoke_run, *WORDS, "--out", out) == 0
    with np.load(whole) as stored:
        for number in (0, N - 1):
            with Image.open(out / f"{number:06d}.png") as image:
                assert np.array_equal(np.asarray(image), stored["arr_0"][number])
        assert json.loads((out / "about.json").read_text()) == json.loads(str(stored["about"]))
    assert (out / "labels.csv").read_text().splitlines()[:3] == ["image,label", "000000.png,0", "000001.png,1"]
    assert len(list(out.iterdir())) == N + 2


def test_an_npz_is_written_part_by_part(tmp_path: Path) -> None:
    """64 MiB in parts of 1 MiB, in less than 8 MiB of memory."""

    def parts() -> Iterator[np.ndarray]:
        for number in range(64):
            yield np.full((1, 512, 683, 3), number, dtype=np.uint8)

    tracemalloc.start()
    output.write_npz(tmp_path / "a.npz", parts(), (64, 512, 683, 3), np.arange(64), {"é": 1})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["arr_0"][:, 0, 0, 0].tolist() == list(range(64)) and json.loads(str(stored["about"])) == {"é": 1}


def test_a_dry_run_says_how_long_and_writes_nothing(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call(sample.main, "--ckpt", smoke_run, *WORDS, "--out", tmp_path / "s.npz", "--dry-run") == 0
    said = capsys.readouterr().out
    for word in ("nothing was sampled. 20 samples by one process", "sampling", "decoding", "writing", "in all", "images/s"):
        assert word in said
    assert " 7 passes of " in said, "four evaluations, of which those at .68, .36 and .04 are guided"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.npz").write_bytes(b"taken")
    with pytest.raises(ValueError, match=r"--out .*s\.npz: exists; name a new one"):
        call(sample.main, "--ckpt", smoke_run, *WORDS, "--out", tmp_path / "s.npz", "--dry-run")


def test_a_grid_of_several_checkpoints_has_the_same_noise(smoke_run: Path, plain_run: Path, tmp_path: Path) -> None:
    """The same run in two rows makes the same row; a class's picture does not depend on the other columns; another run's is another."""
    words = ("--grid", "--ckpt", smoke_run, smoke_run, plain_run, "--sampling-steps", 2, "--sampler", "sde")
    assert call(sample.main, *words, "--classes", "1,5", "--out", tmp_path / "a.png") == 0
    assert call(sample.main, *words[:3], "--classes", "5", "--sampling-steps", 2, "--sampler", "sde", "--out", tmp_path / "b.png") == 0
    with Image.open(tmp_path / "a.png") as image:
        drawn = np.asarray(image)[18:, -128:]
    first, second, third = (drawn[64 * k : 64 * (k + 1)] for k in range(3))
    assert np.array_equal(first, second) and not np.array_equal(first, third) and not np.array_equal(first[:, :64], first[:, 64:])
    with Image.open(tmp_path / "b.png") as image:
        alone = np.asarray(image)[18:, -64:].astype(int)
    assert np.abs(alone - first[:, 64:]).max() <= 1, "batches of 1 and 2 round otherwise"
    with pytest.raises(ValueError, match=r"--at-steps 4: .* has .*30"):
        call(sample.main, *words, "--classes", "1", "--at-steps", "4", "--out", tmp_path / "c.png")
    assert call(sample.main, *words[:3], "--classes", "1,2", "--at-steps", "30", "--sampling-steps", 1, "--out", tmp_path / "c.png") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cfg", 0.5), "--cfg 0.5: must be at least 1"),
        (("--cfg-interval", "0.8,0.2"), "guidance interval 0.8 to 0.2: must be 0 <= LOW <= HIGH"),
        (("--cfg-interval", "0,1.2"), "guidance interval 0.0 to 1.2"),
        (("--cfg-interval", "half"), "--cfg-interval half, .*: LOW,HIGH and all or a whole number are needed"),
        (("--cfg-interval", "0,0.7"), "--cfg-interval 0,0.7, .*: change nothing without guidance; add --cfg W"),
        (("--guide-channels", 3), ".*--guide-channels 3: change nothing without guidance"),
        (("--guide-channels", 5, "--cfg", 2), "--guide-channels 5: the latents of .* have 4"),
        (("--classes", "3,10"), "--classes 10: .* has classes 0 to 9"),
        (("--classes", "equal"), "--classes 'equal': 'equal' is no whole number"),
        (("--sampler", "huen"), r"sampler 'huen' does not exist; choose from dopri5, .*did you mean heun\?"),
        (("--sampler", "dopri5", "--sampling-steps", 5), "--sampling-steps 5: sampler 'dopri5' decides on its steps"),
        (("--sampler", "dopri5", "--batch", 5), "--batch 5: sampler 'dopri5' solves 32 samples together"),
        (("--uint8", "floor"), "--uint8 'floor' does not exist; choose from repa, sit, round"),
        (("--precision", "fp8"), "--precision 'fp8' does not exist; choose from no, bf16, fp16"),
        (("--per-class", 3), "--per-class: goes with neither --n nor --grid"),
        (("--at-steps", "3"), "--at-steps: goes with --grid"),
        (("--grid",), "--n, --grid: are two commands"),
        (("--out", "s.png"), "--out s.png: name a file that ends in .npz, or a folder for PNGs"),
        (("--out", "there.npz"), "--out there.npz: exists; name a new one"),
        (("--out", "full"), "--out full: exists; name a new one"),
        (("--ckpt", "other"), "--ckpt: 2 checkpoints; several go with --grid"),
    ],
)
def test_bad_input(words: tuple[object, ...], said: str, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samplers, "integrate", lambda *_: pytest.fail("sampled"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "there.npz").touch()
    with pytest.raises(ValueError, match=said):
        call(sample.main, "--ckpt", smoke_run, "--n", 4, "--out", "s.npz", *words)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["full", "full/a", "there.npz"]


def test_no_guidance_where_no_label_was_dropped(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke_run, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "0000030" / "state.json"
    state.write_text(state.read_text().replace('"label_dropout": 0.1', '"label_dropout": 0.0'))
    hash_again(state.parent)
    for words in (("--n", 4, "--out", tmp_path / "s.npz"), ("--out", tmp_path / "s.png")):
        with pytest.raises(ValueError, match=r"--cfg 2.0: .* was trained without label dropout, and has no unconditional velocity"):
            call(sample.main, "--ckpt", tmp_path / "run", "--cfg", 2, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
