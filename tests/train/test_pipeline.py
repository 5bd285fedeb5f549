"""The pipeline of diffusers: through save and load, the images of `gsnr sample`'s own parts for the same noise, and what it refuses."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gsnr.train import samplers, vae, verify
from gsnr.train.convert.command import main as convert
from gsnr.train.guidance import Guidance
from gsnr.train.pipeline import SiTPipeline, save_pipeline
from gsnr.train.runs import checkpoint
from gsnr.train.sampling import recipe
from gsnr.train.sampling.recipe import Recipe
from gsnr.train.sampling.subject import subject_of
from tests.conftest import call

CLASSES = [3, 0, 3]


@pytest.fixture(scope="module")
def loaded(smoke_run: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(smoke_run)


@pytest.fixture(scope="module")
def pipe(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> SiTPipeline:
    """Written by the command and read back."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "names.json").write_text(json.dumps({"0": "zero, nought", "3": "three"}))
    assert call(convert, "--ckpt", smoke_run, "--to", "pipeline", "--labels", folder / "names.json", "--out", folder / "made") == 0
    read = SiTPipeline.from_pretrained(folder / "made")
    read.set_progress_bar_config(disable=True)
    return read


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", ["euler", "heun", "sde", "sde_sit"])
def test_images_are_those_of_the_command_for_the_same_noise(sampler: str, pipe: SiTPipeline, loaded: checkpoint.Checkpoint) -> None:
    """Bit for bit: what `gsnr sample` draws of a checkpoint, by its own recipe."""
    guidance, subject = Guidance(weight=2.0, low=0.0, high=0.7, channels=3), subject_of(loaded, None)
    drawn = Recipe(sampler=sampler, steps=3, guidance=guidance, classes=tuple(CLASSES), uint8="repa", seed=5)
    numbers = np.arange(3)
    latents = recipe.latents(subject, drawn, numbers, "cpu")
    noise = samplers.noise_of(5, numbers, subject.shape)
    settings = {"guidance_scale": 2.0, "guidance_interval": (0.0, 0.7), "guidance_channels": 3, "num_inference_steps": 3, "sampler": sampler}
    settings |= {"latents": noise(0), "noise": noise}
    assert torch.equal(pipe(CLASSES, **settings, output_type="latent").images, latents)
    np.testing.assert_array_equal(np.stack(pipe(CLASSES, **settings).images), recipe.images(subject, drawn, latents, 0))


def test_the_same_generator_gives_the_same_images(pipe: SiTPipeline) -> None:
    """One generator, or one a sample; a sample's own does not depend on the others beside it."""
    draw = lambda labels, generator: pipe(labels, num_inference_steps=2, sampler="sde", generator=generator, output_type="np").images
    seeded = lambda *seeds: [torch.Generator().manual_seed(seed) for seed in seeds]
    together = draw([1, 2], seeded(0, 1))
    assert together.shape == (2, 64, 64, 3) and together.dtype == np.float32 and 0 <= together.min() < together.max() <= 1
    np.testing.assert_array_equal(together, draw([1, 2], seeded(0, 1)))
    np.testing.assert_allclose(together[1:], draw([2], seeded(1)), atol=1e-4)
    one = draw([1, 2], torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(one, draw([1, 2], torch.Generator().manual_seed(0)))
    names = pipe(["nought", "three"], num_inference_steps=1, latents=noise()[:2], output_type="latent").images
    assert torch.equal(names, pipe([0, 3], num_inference_steps=1, latents=noise()[:2], output_type="latent", return_dict=False)[0])


def test_a_scaling_by_channel_goes_through_save_and_load(loaded: checkpoint.Checkpoint, tmp_path: Path) -> None:
    assert loaded.header is not None
    header = replace(loaded.header, scale=1.0, channel_scale=(0.5, 2.0, 1.0, 3.0), channel_bias=(0.1, 0.0, -0.2, 0.3))
    scaled = replace(loaded, header=header, config=replace(loaded.config, label_dropout=0.0))
    save_pipeline(scaled, tmp_path / "made")
    assert call(verify.main, tmp_path / "made") == 0
    read = SiTPipeline.from_pretrained(tmp_path / "made")
    assert read.scaling == header.scaling and not read.unconditional
    read.set_progress_bar_config(disable=True)
    final = read(0, num_inference_steps=1, latents=noise()[:1], output_type="latent").images
    picture = read(0, num_inference_steps=1, latents=noise()[:1], output_type="np").images
    raw = final / torch.tensor(header.channel_scale).view(-1, 1, 1) + torch.tensor(header.channel_bias).view(-1, 1, 1)
    decoded = vae.load("demo").decode(raw)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(picture[0], (decoded / 2 + 0.5).clip(0, 1), atol=1e-5)
    with pytest.raises(ValueError, match=r"guidance_scale 2\.0: this model was trained without label dropout"):
        read(0, guidance_scale=2.0)


def test_diffusers_can_read_the_signature() -> None:
    """It warns of each argument whose type it cannot use."""
    assert set(SiTPipeline._get_signature_types()) == set(inspect.signature(SiTPipeline.__init__).parameters) - {"self"}


def test_what_it_says_of_its_progress(pipe: SiTPipeline, capsys: pytest.CaptureFixture) -> None:
    pipe.set_progress_bar_config(disable=False)
    pipe(0, num_inference_steps=2, sampler="heun", latents=noise()[:1], output_type="latent")
    pipe.set_progress_bar_config(disable=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_labels": [10]}, "class_labels: 10 is none of 0 to 9"),
        ({"class_labels": []}, "class_labels: names no class"),
        ({"class_labels": "tree"}, r"class_labels: 'tree' does not exist; choose from zero, nought, three \(did you mean three\?\)"),
        ({"guidance_scale": 0.5}, "guidance weight 0.5: must be a number of at least 1"),
        ({"guidance_interval": (0.7, 0.0)}, "guidance interval 0.7 to 0.0"),
        ({"num_inference_steps": 0}, "num_inference_steps 0: must be at least 1"),
        ({"sampler": "eulr"}, "'eulr'.*euler"),
        ({"uint8": "up"}, "uint8 'up' does not exist; choose from repa, sit, round"),
        ({"output_type": "jpg"}, "output_type 'jpg' does not exist; choose from pil, np, latent"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"latents: of shape \(1, 4, 4, 4\); these samples are of \(1, 4, 8, 8\)"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "generator: a list of 2 for 1 samples"),
    ],
)
def test_bad_calls(changes: dict, said: str, pipe: SiTPipeline) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        pipe(**({"class_labels": [0], "num_inference_steps": 1} | changes))
    assert "\n" not in str(raised.value)


def test_what_becomes_no_pipeline(smoke_run: Path, loaded: checkpoint.Checkpoint, tmp_path: Path) -> None:
    words = ("--ckpt", smoke_run, "--out", tmp_path / "out")
    for more, said in (
        (("--to", "pipelin"), "--to 'pipelin' does not exist; choose from checkpoint, pipeline"),
        (("--to", "pipeline", "--resolution", 128), "--resolution: makes a start for training"),
        (("--to", "pipeline", "--weights", "best"), "--weights 'best' does not exist"),
        (("--to", "pipeline", "--labels", tmp_path / "none.json"), "--labels .*none.json: not JSON"),
        (("--vae", "demo", "--resolution", 128), "--vae: of a pipeline alone"),
        (("--to", "pipeline", "--vae", ""), "--vae '': names nothing"),
        (("--to", "pipeline", "--from", "sit"), "--from sit: is of a file"),
        (("--resolution", 128, "--model", "SiT-B/2"), "--model SiT-B/2: is of a file"),
    ):
        with pytest.raises(ValueError, match=said):
            call(convert, *words, *more)
    with pytest.raises(ValueError, match="does not say which VAE decodes its latents; name one with --vae"):
        save_pipeline(replace(loaded, header=None), tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists; name a new folder"):
        save_pipeline(loaded, tmp_path / "there")
    assert not (tmp_path / "out").exists()
