"""PCA maps: against a singular value decomposition, stable in sign and order, on the demo's VAE and on SD-VAE's architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from gsnr import table
from gsnr.probes import vae_pca
from gsnr.probes.common.command import main
from gsnr.train.priors import features
from gsnr.train.vaes import autoencoder_kl
from tests.conftest import call


def test_components_against_an_svd() -> None:
    rng = np.random.default_rng(0)
    f = (rng.normal(size=(6, 10, 5)) * [5, 3, 2, 1, 1] @ np.linalg.qr(rng.normal(size=(5, 5)))[0]).astype(np.float32)
    projected, shares = vae_pca.components(f)
    tokens = f.reshape(-1, 5).astype(np.float64)
    u, s, vt = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    np.testing.assert_allclose(shares, (s**2 / (s**2).sum())[:3], rtol=1e-9)
    for i in range(3):
        sign = np.sign(vt[i, np.abs(vt[i]).argmax()])
        np.testing.assert_allclose(projected.reshape(-1, 3)[:, i], sign * u[:, i] * s[i], atol=1e-5)
    colours = vae_pca.colours(projected)
    assert colours.min() == 0 and colours.max() == 1 and colours.shape == (6, 10, 3)
    again, _ = vae_pca.components(f[::-1])  # another order of images
    np.testing.assert_allclose(again[::-1], projected, atol=1e-4)


def test_sd_vae_s_architecture() -> None:
    """Random weights, SD-VAE's blocks at an eighth of the width: groups, grids and signs."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = autoencoder_kl.VAE(AutoencoderKL(block_out_channels=(16, 32, 64, 64), layers_per_block=2, norm_num_groups=8, **blocks))
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    _, _, groups = features.encode(vae, pixels, vae.layers, 4)
    assert list(groups) == ["G1", "G2", "G3", "G4"]
    for f in groups.values():
        averaged = f.float().mean(1).flatten(2).transpose(1, 2).numpy()
        one, two = (vae_pca.components(averaged) for _ in range(2))
        np.testing.assert_array_equal(one[0], two[0])
        assert one[0].shape == (4, 16, 3) and 0 < one[1].sum() <= 1 + 1e-9


def test_the_tables_and_the_figure(smoke_run: Path, tmp_path: Path) -> None:
    from gsnr.figures import fig4_pca

    words = ("--ckpt", smoke_run, "--probe", "vae_pca", "--n-images", 16)
    for name in ("a", "b"):
        assert call(main, *words, "--out", tmp_path / name) == 0
    one, two = (table.read(tmp_path / name / "vae_pca.maps.parquet") for name in ("a", "b"))
    assert one.equals(two), "the same maps in every run"
    assert set(one["group"]) == {"image", "G1", "G2", "G3", "G4", "teacher"}
    assert len(one) == vae_pca.SHOWN * (64 * 64 + 5 * 8 * 8)
    assert one[["red", "green", "blue"]].to_numpy().min() >= 0 and one[["red", "green", "blue"]].to_numpy().max() <= 1
    shares = table.read(tmp_path / "a" / "vae_pca.parquet")
    assert (shares.groupby("group")["value"].apply(lambda v: v.is_monotonic_decreasing and 0 < v.sum() <= 1)).all()
    assert len(fig4_pca.draw(one).axes) == fig4_pca.ROWS * 6
    with pytest.raises(ValueError, match="the held-out split"):
        call(main, *words[:-1], 999, "--out", tmp_path / "c")
