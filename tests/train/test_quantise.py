"""Features in eight bits: what they cost in bytes and in the alignment target."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from sklearn.datasets import load_sample_image

from gsnr.train import vae as vaes
from gsnr.train.data import quantise
from gsnr.train.demo import images as demo
from gsnr.train.prepare import encode, shards
from gsnr.train.prepare.images import centre_crop
from gsnr.train.priors import features, mixture
from gsnr.train.vaes import autoencoder_kl


def test_every_value_is_within_half_a_step() -> None:
    """The step is rounded to float16 (relative 2^-11), the value to float16 again."""
    f = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 3, 5).view(5, 1, 1)
    q, scale = quantise.quantise(f)
    assert q.dtype == torch.int8 and scale.dtype == torch.float16 and scale.shape == (2, 3, 5)
    assert (q.abs().amax((-2, -1)) == 127).all()
    back = quantise.dequantise(q, scale)
    assert back.dtype == torch.float16
    step = f.abs().amax((-2, -1), keepdim=True) / 127
    assert ((back.float() - f).abs() <= step * (0.5 + 127 * 2**-10)).all()
    np.testing.assert_array_equal(quantise.dequantise_rows(q.numpy(), scale.numpy()), back.numpy())


def test_channels_that_are_zero_or_tiny_come_back_as_zero() -> None:
    f = torch.zeros(1, 1, 3, 2, 2)
    f[0, 0, 1] = 1e-7
    f[0, 0, 2, 0, 0] = 5.0
    back = quantise.dequantise(*quantise.quantise(f))
    assert torch.isfinite(back).all() and (back[0, 0, :2] == 0).all() and back[0, 0, 2].tolist() == [[5.0, 0.0], [0.0, 0.0]]


def cosine_error(exact: dict[str, torch.Tensor]) -> float:
    """1 - cos between the uniform target of eight-bit and of float16 features, mean over images and tokens, in float64."""

    def target(groups: dict[str, torch.Tensor]) -> torch.Tensor:
        named = mixture.mid_deep(groups["G3"], groups["G4"], groups["G3"].shape[1])
        some = {name: torch.full(f.shape[:2], 1 / f.shape[1]) for name, f in named.items()}
        return mixture.mix(named, some | {"beta": torch.full((len(exact["G3"]), 2), 0.5)}).double()

    eight = {group: quantise.dequantise(*quantise.quantise(f)) for group, f in exact.items()}
    return float((1 - torch.cosine_similarity(target(eight), target({g: f.half() for g, f in exact.items()}), dim=-1)).mean())


def test_the_target_s_direction_survives_on_the_demo_vae() -> None:
    frozen = vaes.load("demo")
    chosen = [layer for layer in frozen.layers if layer.group in ("G3", "G4")]
    _, _, groups = features.encode(frozen, encode.to_pixels(demo.images("heldout", 32)[0]), chosen, 8)
    error = cosine_error(groups)
    print(f"demo VAE: mean cosine error {error:.2e}")
    assert 0 < error <= 1e-3


@pytest.fixture(scope="module")
def sd_vae() -> autoencoder_kl.VAE:
    """SD-VAE's architecture at its real width, random weights."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",)}
    return autoencoder_kl.VAE(AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks))


def test_bytes_and_error_at_real_width(sd_vae: autoencoder_kl.VAE, tmp_path: Path) -> None:
    """A photograph at 256 pixels, eight layers of 512 channels on 16x16 tokens: at most 1.05 MiB an image, all columns and the format's own
    bytes included, and a cosine error of at most 1e-3."""
    picture = centre_crop(Image.fromarray(load_sample_image("china.jpg")), 256)[None].copy()
    chosen = [layer for layer in sd_vae.layers if layer.group in ("G3", "G4")]
    assert [layer.channels for layer in chosen] == [512] * 8
    mean, _, groups = features.encode(sd_vae, encode.to_pixels(picture), chosen, 16)
    error = cosine_error(groups)

    copies, sizes = 16, {}
    for dtype in quantise.DTYPES:
        header = encode.make_header(
            sd_vae, data="x", resolution=256, num_classes=1, grid=16, groups=("G3", "G4"), resampling="adaptive", preprocessing="",
            sizes={"train": copies}, dtype=dtype,
        )  # fmt: skip
        row: dict[str, np.ndarray] = {"image_id": np.zeros(1, np.int64), "label": np.zeros(1, np.int64), "view": np.zeros(1, np.int8)}
        row |= {"mean": mean.numpy(), "std": mean.numpy()}
        for group, f in groups.items():
            q, scale = quantise.quantise(f)
            row |= {group: q.numpy(), f"{group}_scale": scale.numpy()} if dtype == "int8" else {group: f.half().numpy()}
        shards.write_rows(tmp_path / dtype, header, [{name: np.repeat(values, copies, axis=0) for name, values in row.items()}])
        sizes[dtype] = (tmp_path / dtype).stat().st_size / copies / 2**20
    print(f"SD-VAE's width, random weights: mean cosine error {error:.2e}; MiB an image: {sizes}")
    assert error <= 1e-3
    assert sizes["int8"] <= 1.05 and math.isclose(sizes["float16"], 2.03, abs_tol=0.01)
