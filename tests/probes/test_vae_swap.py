"""Another VAE's features under a trained router, and a router on a backbone that was trained without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from gsnr import table
from gsnr.probes.common.command import main
from gsnr.train.command import main as train
from gsnr.train.prepare.command import main as prepare
from tests.conftest import call

WORDS = ("--bins", 2, "--n-images", 8, "--fit-samples", 128, "--controls", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 40 pictures as caches a and b, of two VAEs whose layers differ in width; c: other pictures; a run and a plain run on a."""
    root = tmp_path_factory.mktemp("swap")
    rng = np.random.default_rng(0)
    for which in ("pictures", "others"):
        for i in range(40):
            path = root / which / f"class{i % 2 if which == 'pictures' else i % 4 // 2}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",)}
    for name, widths in (("a", (4, 8, 16, 16)), ("b", (4, 8, 24, 24))):
        torch.manual_seed(len(widths) + widths[-1])
        AutoencoderKL(block_out_channels=widths, layers_per_block=2, norm_num_groups=4, **blocks).save_pretrained(root / f"vae-{name}")
    common = ("--resolution", 32, "--patch", 1, "--heldout", 10)
    for cache, data, vae in (("a", "pictures", "a"), ("b", "pictures", "b"), ("c", "others", "b")):
        assert call(prepare, "--data", root / data, "--vae", root / f"vae-{vae}", *common, "--out", root / cache) == 0
    model = ("--model.input-size", 4, "--model.num-classes", 2, "--data.path", root / "a", "--trackers", "none", "--steps", 3)
    assert call(train, "--preset", "smoke", *model, "--alignment.features", "standardise", "--out", root / "ahpa") == 0
    assert call(train, "--preset", "smoke", *model, "--alignment", "none", "--out", root / "plain") == 0
    return root


def test_the_features_are_the_other_vae_s_and_the_rest_stays(folder: Path, tmp_path: Path) -> None:
    words = ("--ckpt", folder / "plain", "--align-from", folder / "ahpa", *WORDS)
    assert call(main, *words, "--probe", "vae_swap", "--swap", folder / "b", "--out", tmp_path / "swap") == 0
    cells = table.read(tmp_path / "swap" / "vae_swap.parquet")
    assert list(dict.fromkeys(cells["vae"])) == [str(folder / "vae-a"), str(folder / "vae-b")]
    assert set(cells["target"]) == {"ahpa", "uniform_both"} and set(cells["projector"]) == {"fit"} and set(cells["run"]) == {"plain"}
    assert call(main, *words, "--probe", "alignment", "--targets", "own,uniform_both", "--out", tmp_path / "own") == 0
    alone = table.read(tmp_path / "own" / "alignment.parquet")
    own = cells[cells["vae"] == str(folder / "vae-a")].reset_index(drop=True)
    columns = ["target", "group", "bin", "loss", "signal", "noise", "cos_denoise"]
    pd.testing.assert_frame_equal(own[columns], alone[columns], check_exact=True)
    other = cells[cells["vae"] == str(folder / "vae-b")].reset_index(drop=True)
    assert (other["loss"] != own["loss"]).all()
    samples = table.read(tmp_path / "swap" / "vae_swap.samples.parquet")
    assert samples.groupby(["bin", "image_id"])["t"].nunique().max() == 1, "the same times"


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--ckpt", folder / "ahpa", "--swap", folder / "c"), "--swap .*c: holds .*others.*, not the same images and labels as .*pictures"),
        (("--ckpt", folder / "ahpa"), "give caches of the same images with --swap"),
        (("--ckpt", folder / "ahpa", "--swap", folder / "a"), "vae-a' is the VAE of two of the caches, the checkpoint's among them"),
        (("--ckpt", folder / "ahpa", "--swap", f"{folder / 'b'},{folder / 'b'}"), "--swap .*b': names .*b' twice"),
        (("--ckpt", folder / "plain", "--swap", folder / "b"), "has no router over t"),
        (("--ckpt", folder / "plain", "--align-from", folder / "plain"), "--align-from .*plain: aligned to nothing"),
        (("--ckpt", folder / "plain", "--align-from", folder / "nope"), "nope: no such run"),
        (("--ckpt", folder / "ahpa", "--swap", folder / "pictures"), "pictures: not a gsnr cache"),
    ):
        with pytest.raises(ValueError, match=str(message)):
            call(main, *words, *WORDS, "--probe", "vae_swap", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
