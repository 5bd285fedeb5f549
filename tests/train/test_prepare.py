"""`python -m train.prepare`: from a folder of pictures to a run, with any AutoencoderKL saved in the hub's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tests.conftest import call
from train.data import cache
from train.prepare import centre_crop, main


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE with random weights and a scaling factor of its own, on disk as the hub keeps it."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("vae")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(block_out_channels=(4, 8, 16, 16), layers_per_block=2, norm_num_groups=4, scaling_factor=0.5, **blocks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of ten pictures of odd sizes, one of them grey."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "eel"):
        (folder / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 255, (70 + 3 * i, 90), dtype=np.uint8) if i == 0 else rng.integers(0, 255, (70 + 3 * i, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "cat" / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures_trains_and_is_probed(pictures: Path, vae_folder: Path, tmp_path: Path) -> None:
    from gsnr.probe import main as probe
    from train.__main__ import main as train

    out = tmp_path / "cache"
    words = ("--data", pictures, "--vae", vae_folder, "--resolution", "32", "--patch", "2", "--heldout", "6", "--out", out)
    assert call(main, *words) == 0
    header, splits = cache.open_cache(out, ("G3", "G4"))
    assert header.latent_shape == (4, 4, 4) and header.groups == {"G3": (4, 16, 2, 2), "G4": (4, 16, 2, 2)}
    assert header.scale == 0.5 and header.num_classes == 3
    assert splits["train"].size == 24 and splits["heldout"].size == 6
    labels = np.concatenate([s.take(np.arange(s.size), ("label",))["label"] for s in splits.values()])
    assert sorted(labels) == sorted([0, 1, 2] * 10)
    small = ("--model.input-size", 4, "--model.hidden-size", 16, "--model.depth", 2, "--model.num-heads", 2, "--model.num-classes", 3)
    run = tmp_path / "run"
    common = ("--preset", "ahpa-b2", "--data.path", out, "--data.workers", 0, "--precision", "no", "--steps", 2, "--batch", 8)
    assert call(train, *common, *small, "--out", run) == 0
    assert call(probe, "--ckpt", run, "--bins", 2, "--n-images", 6, "--fit-steps", 2) == 0
    with pytest.raises(ValueError, match="not the VAE that made the latents"):
        call(probe, "--ckpt", run, "--vae", "demo")
    with pytest.raises(ValueError, match=r"trained with VAE .* but the data were encoded by 'demo'"):
        call(probe, "--ckpt", run, "--data", "demo")
    with pytest.raises(ValueError, match="the cache has 3 classes, the model 1000"):
        call(train, *common, *small[:-2], "--out", tmp_path / "other")
    with pytest.raises(ValueError, match=r"latents of shape \(4, 4, 4\)"):
        call(train, *common, "--model.num-classes", 3, "--out", tmp_path / "other")


def test_centre_crop() -> None:
    """Short side to 32, the centre kept, grey made RGB; a picture of the right size comes through untouched."""
    exact = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(exact), 32), exact)
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = exact
    np.testing.assert_array_equal(centre_crop(Image.fromarray(wide), 32), exact)
    for size in ((33, 70), (500, 64), (31, 31), (64, 64)):
        assert centre_crop(Image.new("L", size, 128), 32).shape == (32, 32, 3)
    doubled = exact.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(doubled), 32), exact)


def test_bad_input_is_named(pictures: Path, vae_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fails(match: str, **changes: object) -> None:
        options = {"data": pictures, "vae": vae_folder, "out": out, "resolution": 32, "heldout": 6} | changes
        with pytest.raises(ValueError, match=match):
            call(main, *(w for k, v in options.items() for w in (f"--{k}", v)))
        assert not out.exists() and not list(tmp_path.glob(".out*"))

    fails("no such folder", data=tmp_path / "nope")
    fails("no images in sub-folders", data=vae_folder)
    fails("multiple of 8", resolution=36)
    fails("--heldout 30", heldout=30)
    fails("feature group 'G9' does not exist", features="G9")
    fails("choose from adaptive, bilinear", resampling="nope")
    fails("cannot be loaded", vae=tmp_path)
    broken = tmp_path / "broken" / "cat"
    broken.mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(broken / "a.png")
    (broken / "b.png").write_bytes(b"\x89PNG nonsense")
    fails(r"b\.png: not a readable image", data=tmp_path / "broken", heldout=1)
    with pytest.raises(ValueError, match="exists; name a new folder"):
        call(main, "--data", pictures, "--vae", vae_folder, "--out", tmp_path)
