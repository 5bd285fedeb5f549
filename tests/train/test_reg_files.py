"""REG on the disk: a file of its layout, the cache's class tokens, a run, its samples and probes, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gsnr
from gsnr.probes.common.command import main as probe
from gsnr.train import guidance, samplers
from gsnr.train import teacher as teachers
from gsnr.train.command import main as train
from gsnr.train.config import CLASS_TOKEN
from gsnr.train.convert.command import main as convert
from gsnr.train.data import cache
from gsnr.train.evaluate import evaluate
from gsnr.train.models.convnet import ConvNet
from gsnr.train.models.sit import extra_of
from gsnr.train.pipeline import SiTPipeline
from gsnr.train.prepare.command import main as prepare
from gsnr.train.runs import checkpoint
from gsnr.train.sample import main as sample
from gsnr.train.sampling import recipe, subject
from tests.conftest import call
from tests.train.dino_files import IMAGENET, bicubic, save_dino, with_positions_for
from tests.train.foreign_files import CHANNELS, MODEL, SIDE, WithToken, mlp, write
from tests.train.run_files import assert_same_run

REPA = {"encoder_depth": 2, "proj_coeff": 0.5, "enc_type": "dinov2-vit-b", "path_type": "linear", "prediction": "v"}
E = 20  # channels of the class token, and of REPA's head
SMALL = ("--preset", "reg-demo", "--data.demo-train", 96, "--data.demo-heldout", 32, "--model.hidden-size", 32, "--model.depth", 2)
WORDS = (*SMALL, "--model.num-heads", 2, "--sample-every", 0, "--log-every", 1, "--trackers", "none")


def reg_file(path: Path) -> tuple[WithToken, WithToken]:
    """A file of random weights in REG's layout, and the models in it."""
    torch.manual_seed(0)
    raw, ema = (WithToken(E, {"projectors": torch.nn.ModuleList([mlp(channels=E)])}) for _ in range(2))
    write(path, raw, ema, steps=12, **REPA)
    return raw, ema


def test_a_file_of_reg_is_the_same_function(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """To 1e-5, float32 against float64, of velocities of order 1; the head's projection of all T + 1 tokens too."""
    references = reg_file(tmp_path / "f.pt")
    assert call(convert, "--ckpt", tmp_path / "f.pt", "--from", "reg", "--out", tmp_path / "out", "--model", MODEL) == 0
    assert "read as reg (t = 1 is noise); step 12, alignment repa at block 2" in capsys.readouterr().out
    g = torch.Generator().manual_seed(1)
    x, cls = torch.randn(4, CHANNELS, SIDE, SIDE, generator=g), torch.randn(4, E, generator=g)
    t, y = torch.tensor([0.0, 0.3, 0.9, 1.0]), torch.tensor([0, 3, 9, 10])
    for weights, reference in zip(("raw", "ema"), references, strict=True):
        loaded = checkpoint.load(tmp_path / "out", weights)  # type: ignore[arg-type]
        exact = copy.deepcopy(reference).double()
        with torch.no_grad():
            (v, v_cls), hidden = loaded.model.forward_with_taps(x, t, y, taps=(2,), extra=cls)
            expected = exact.both(x.double(), t.double(), y, cls.double())
            projected = loaded.alignment.projector(torch.cat([hidden[extra_of(2)], hidden[2]], dim=1))
            torch.testing.assert_close(projected.double(), exact.projectors[0](expected[2][1]), rtol=1e-5, atol=1e-5)
        assert expected[0].std() > 0.3 and expected[1].std() > 0.3
        for found, right in zip((v, v_cls), expected, strict=False):
            torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-5)
    assert loaded.alignment.class_token and loaded.latent_scale == 0.18215 and loaded.config.model.extra_token == E
    assert loaded.groups == {"teacher": (1, E, 8, 8), CLASS_TOKEN: (1, E, 1, 1)}


def test_a_file_of_reg_at_another_resolution_and_one_that_lacks_a_tensor(tmp_path: Path) -> None:
    raw, ema = reg_file(tmp_path / "f.pt")
    assert call(convert, "--ckpt", tmp_path / "f.pt", "--model", MODEL, "--resolution", 128, "--out", tmp_path / "out") == 0
    made = checkpoint.load(tmp_path / "out")
    assert made.model.pos_embed.shape == (1, 1 + 256, 32) and not made.model.pos_embed[:, 0].any() and made.groups[CLASS_TOKEN] == (1, E, 1, 1)
    del raw.wg_norm.bias, ema.wg_norm.bias
    write(tmp_path / "less.pt", raw, ema, **REPA)
    with pytest.raises(ValueError, match=r"less.pt: no format that is known: lacks wg_norm.bias"):
        call(convert, "--ckpt", tmp_path / "less.pt", "--out", tmp_path / "other")


@pytest.mark.parametrize("registers", [0, 4])
def test_the_class_token_is_dinov2_s(registers: int, tmp_path: Path) -> None:
    """Against transformers on an image resized and normalised in numpy; beside it the patch tokens are those of always."""
    model, teacher = save_dino(tmp_path, registers), teachers.load(str(tmp_path))
    x = torch.rand(2, 3, 96, 96) * 2 - 1
    features, token = teacher.with_class_token(x, 6)
    resize = bicubic(96, 84)
    pixels = (np.einsum("hH,bcHW,wW->bchw", resize, (x.double().numpy() + 1) / 2, resize) - np.reshape(IMAGENET[0], (3, 1, 1))) / np.reshape(
        IMAGENET[1], (3, 1, 1)
    )
    with torch.no_grad():
        expected = with_positions_for(model, 6)(pixel_values=torch.from_numpy(pixels).float()).last_hidden_state[:, 0]
    torch.testing.assert_close(token, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(features, teacher.features(x))


def pictures(folder: Path) -> Path:
    from PIL import Image

    for i in range(8):
        (folder / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"c{i % 2}" / f"{i}.png")
    return folder


def test_prepare_keeps_class_tokens(tmp_path: Path) -> None:
    """Raw, in float16 and int8 alike, of the pictures; features alone without the flag; one without a class token is refused."""
    data, words = pictures(tmp_path / "data"), ("--vae", "demo", "--features", "none", "--resolution", 64, "--patch", 1, "--heldout", 2)
    for dtype in ("float16", "int8"):
        assert call(prepare, "--data", data, *words, "--teacher", "demo", "--class-token", "--dtype", dtype, "--out", tmp_path / dtype) == 0
        header, splits = cache.open_cache(tmp_path / dtype, (CLASS_TOKEN,))
        assert header.groups == {"teacher": (1, 128, 8, 8), CLASS_TOKEN: (1, 128, 1, 1)} and tuple(header.maps) == ("teacher",)
        rows = splits["train"].take(np.arange(6), ("teacher", CLASS_TOKEN))
        pooled = rows["teacher"].astype(np.float32).mean((3, 4))
        np.testing.assert_allclose(rows[CLASS_TOKEN][..., 0, 0], pooled, atol=2e-2 if dtype == "int8" else 2e-3)
    assert call(prepare, "--data", data, *words, "--teacher", "demo", "--class-token", "--out", tmp_path / "float16") == 0
    with pytest.raises(ValueError, match="was prepared with other options: --class-token was True, now False"):
        call(prepare, "--data", data, *words, "--teacher", "demo", "--out", tmp_path / "float16")
    with pytest.raises(ValueError, match="--class-token: is a teacher's; name one with --teacher"):
        call(prepare, "--data", data, *words, "--class-token", "--out", tmp_path / "new")
    ConvNet(widths=(8, 16, 16)).save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=r"--class-token: teacher '.*net' has no class token; a DINOv2 has one"):
        call(prepare, "--data", data, *words, "--class-token", "--teacher", tmp_path / "net", "--out", tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))
    assert call(prepare, "--data", data, *words, "--teacher", "demo", "--out", tmp_path / "plain") == 0
    with pytest.raises(ValueError, match=r"plain: holds no features of teacher_cls .it has teacher.; prepare it again with .* --class-token"):
        call(train, *WORDS, "--data.path", tmp_path / "plain", "--out", tmp_path / "run")
    with pytest.raises(ValueError, match=r"--model.extra-token 5: the cache's class tokens have 128 channels"):
        call(train, *WORDS, "--model.extra-token", 5, "--model.num-classes", 2, "--data.path", tmp_path / "float16", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reg") / "run"
    assert call(train, *WORDS, "--steps", 4, "--save-every", 2, "--gsnr-every", 4, "--gsnr-images", 4, "--out", out) == 0
    return out


def test_a_run_resumes_bit_for_bit(run: Path, tmp_path: Path) -> None:
    words = (*WORDS, "--save-every", 2, "--gsnr-every", 4, "--gsnr-images", 4, "--out", tmp_path / "parts")
    assert call(train, *words, "--steps", 2) == 0
    assert call(train, *words, "--steps", 4, "--resume") == 0
    assert_same_run(run, tmp_path / "parts", 4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["class_token"] > 0 and line["loss"] == pytest.approx(sum(w * line[k] for k, w in PARTS.items()), rel=1e-5) for line in lines)
    assert {json.loads(line)["loss"] for line in (run / "gsnr.jsonl").read_text().splitlines()} == set(PARTS)


PARTS = {"velocity": 1.0, "align": 0.5, "class_token": 0.03}


def test_samples_are_their_own_and_the_token_has_its_guidance(run: Path, tmp_path: Path) -> None:
    opened = subject.open_subject(run, "ema", None)
    torch.manual_seed(0)
    for p in opened.loaded.model.parameters():  # after four steps the token hardly moves the latent
        torch.nn.init.normal_(p, std=0.1)

    def drawn(numbers: list[int], sampler: str = "sde", **own: float) -> torch.Tensor:
        token = guidance.Guidance(**own) if own else None
        by = guidance.Guidance(weight=2.3, high=0.85, token=token)
        made = recipe.Recipe(sampler=sampler, steps=6, guidance=by, classes="balanced", uint8="repa", seed=0)
        return recipe.latents(opened, made, np.array(numbers), "cpu")

    torch.testing.assert_close(drawn([5, 2]), drawn([2, 3, 5])[[2, 0]], rtol=1e-4, atol=1e-4)
    assert torch.equal(drawn([0, 1]), drawn([0, 1], weight=2.3, high=0.85)) and not torch.equal(drawn([0, 1]), drawn([0, 1], weight=1.0))
    out = tmp_path / "s.npz"
    words = ("--ckpt", run, "--n", 4, "--sampling-steps", 2, "--cfg", 2.3, "--cfg-interval", "0,0.85", "--out", out)
    assert call(sample, *words, "--cls-cfg", 1.5, "--cls-cfg-interval", "0,0.5") == 0
    about = json.loads(str(np.load(out)["about"]))
    assert (about["class_token_guidance"], about["class_token_interval"]) == (1.5, [0.0, 0.5])
    assert call(sample, "--ckpt", run, "--classes", 2, "--per-class", 1, "--sampling-steps", 2, "--out", tmp_path / "s.png") == 0
    with pytest.raises(ValueError, match=r"--cls-cfg 2.0, --cls-cfg-interval 1,0: guidance interval 1.0 to 0.0"):
        call(sample, *words[:-1], tmp_path / "new.npz", "--cls-cfg", 2, "--cls-cfg-interval", "1,0")


def test_a_model_without_a_token_has_none_to_guide(smoke_run: Path, tmp_path: Path) -> None:
    for words in (("--cls-cfg", 2.3), ("--cfg", 2, "--cls-cfg-interval", "0,0.85")):
        with pytest.raises(ValueError, match=r"--cls-cfg, --cls-cfg-interval: .* has no class token to guide; leave them out"):
            call(sample, "--ckpt", smoke_run, *words, "--n", 4, "--out", tmp_path / "s.npz")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_draws_what_the_command_draws(run: Path, tmp_path: Path) -> None:
    assert call(convert, "--ckpt", run, "--to", "pipeline", "--out", tmp_path / "pipe") == 0
    pipe = SiTPipeline.from_pretrained(tmp_path / "pipe")
    opened = subject.open_subject(run, "ema", None)
    by = guidance.Guidance(weight=2.0, token=guidance.Guidance(weight=1.5, high=0.5))
    made = recipe.Recipe(sampler="sde", steps=4, guidance=by, classes="balanced", uint8="repa", seed=0)
    noise = samplers.noise_of(0, np.arange(2), opened.shape, extra=opened.extra)
    words = {"guidance_scale": 2.0, "num_inference_steps": 4, "sampler": "sde", "output_type": "latent"}
    own = {"class_token_scale": 1.5, "class_token_interval": (0.0, 0.5)}
    drawn = pipe([0, 1], **words, **own, latents=noise(0)[0], class_tokens=noise(0)[1], noise=noise).images
    torch.testing.assert_close(drawn, recipe.latents(opened, made, np.arange(2), "cpu"), rtol=1e-5, atol=1e-5)
    one, two = (pipe([0, 1], **words, generator=torch.Generator().manual_seed(3)).images for _ in range(2))
    assert torch.equal(one, two)
    pipe.transformer = gsnr.load_model(run)
    with pytest.raises(ValueError, match=r"class_tokens: of shape \(2, 3\); these samples are of \(2, 128\)"):
        pipe([0, 1], **words, class_tokens=torch.zeros(2, 3))


def test_a_run_is_evaluated_and_probed(run: Path, tmp_path: Path) -> None:
    """Its class-token loss too; the alignment's targets are those of any backbone, over the patches."""
    result = evaluate(run, n_images=8, frechet=0)
    assert result["velocity_loss"] > 0 and result["class_token_loss"] > 0
    words = ("--bins", 1, "--n-images", 20, "--out", tmp_path / "tables")
    assert call(probe, "--ckpt", run, "--probe", "denoising,controls,representation,readability", *words, "--train-images", 32) == 0
    assert set(pd.read_parquet(tmp_path / "tables" / "denoising.parquet")["target"]) == {"denoising", "class_token"}
    targets = ("--targets", "own,uniform_deep,sra", "--fit-samples", 64, "--fit-steps", 2, "--controls", "none")
    assert call(probe, "--ckpt", run, "--probe", "alignment", *words, *targets) == 0
    table = pd.read_parquet(tmp_path / "tables" / "alignment.parquet")
    assert set(table["target"]) == {"repa", "uniform_deep", "sra"} and set(table["projector"]) == {"fit", "ckpt"}


def test_a_cache_of_the_demo_is_the_same_without(run: Path) -> None:
    """The demo's own cache, which old runs were trained on, holds none; both hold the same latents."""
    from gsnr.train.demo.cache import demo_cache

    plain, token = (cache.open_cache(demo_cache(8, 4, "adaptive", class_token=with_token), ()) for with_token in (False, True))
    assert CLASS_TOKEN not in plain[0].groups and CLASS_TOKEN in token[0].groups
    rows = [splits["heldout"].take(np.arange(4), ("mean", "teacher")) for _, splits in (plain, token)]
    assert all(np.array_equal(rows[0][name], rows[1][name]) for name in rows[0])
