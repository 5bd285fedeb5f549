"""The layer walk on the real SD-VAE architecture (random weights), the groups, resampling, and one encoder pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from gsnr.train.priors.features import encode
from gsnr.train.vaes._kl_encoder import layers
from gsnr.train.vaes.autoencoder_kl import VAE

# The 15 layers of AHPA, Table A.8: number, module under `encoder.`, channels, side for a 256x256 input, group
TABLE = [
    (1, "conv_in", 128, 256, "G1"),
    (2, "down_blocks.0.resnets.0", 128, 256, "G1"),
    (3, "down_blocks.0.resnets.1", 128, 256, "G1"),
    (4, "down_blocks.0.downsamplers.0", 128, 128, "G1"),
    (5, "down_blocks.1.resnets.0", 256, 128, "G2"),
    (6, "down_blocks.1.resnets.1", 256, 128, "G2"),
    (7, "down_blocks.1.downsamplers.0", 256, 64, "G2"),
    (8, "down_blocks.2.resnets.0", 512, 64, "G3"),
    (9, "down_blocks.2.resnets.1", 512, 64, "G3"),
    (10, "down_blocks.2.downsamplers.0", 512, 32, "G3"),
    (11, "down_blocks.3.resnets.0", 512, 32, "G3"),
    (12, "down_blocks.3.resnets.1", 512, 32, "G4"),
    (13, "mid_block.resnets.0", 512, 32, "G4"),
    (14, "mid_block.attentions.0", 512, 32, "G4"),
    (15, "mid_block.resnets.1", 512, 32, "G4"),
]


def autoencoder(widths: tuple[int, ...], groups: int = 32) -> AutoencoderKL:
    torch.manual_seed(0)
    n = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=groups,
    ).eval()


@pytest.fixture(scope="module")
def sd_vae() -> AutoencoderKL:
    """SD-VAE's architecture at its real size, random weights."""
    return autoencoder((128, 256, 512, 512))


@pytest.fixture(scope="module")
def small_vae() -> AutoencoderKL:
    return autoencoder((8, 16, 32, 32), groups=4)


def test_sd_vae_gives_the_papers_table(sd_vae: AutoencoderKL) -> None:
    """Names, channels and groups by the walk; sides by running the encoder at 64x64 (a quarter of the table's 256)."""
    walked = layers(sd_vae.encoder)
    sides: dict[str, int] = {}
    order: list[str] = []

    def record(name: str):
        def hook(_m, _i, out: torch.Tensor) -> None:
            sides[name] = out.shape[-1] * 4
            order.append(name)
            assert out.shape[1] == next(layer.channels for layer in walked if layer.name == name)

        return hook

    handles = [sd_vae.encoder.get_submodule(layer.name).register_forward_hook(record(layer.name)) for layer in walked]
    with torch.no_grad():
        sd_vae.encode(torch.randn(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert [(x.number, x.name, x.channels, sides[x.name], x.group) for x in walked] == TABLE
    assert order == [x.name for x in walked], "the walk is in the order the encoder runs"


@pytest.mark.parametrize(("split", "mid"), [("2/6", 2), ("4/4", 4), ("6/2", 6)])
def test_splits(small_vae: AutoencoderKL, split: str, mid: int) -> None:
    walked = layers(small_vae.encoder, split)
    assert [x.number for x in walked if x.group == "G3"] == list(range(8, 8 + mid))
    assert [x.number for x in walked if x.group == "G4"] == list(range(8 + mid, 16))


def test_other_depths_are_grouped_by_level() -> None:
    walked = layers(autoencoder((8, 16, 32), groups=4).encoder)
    assert {x.level: x.group for x in walked} == {0: "G2", 1: "G3", 2: "G4"}
    assert sum(x.group == "G4" for x in walked) == 2 + 3
    with pytest.raises(ValueError, match="grouped by level"):
        layers(autoencoder((8, 16, 32), groups=4).encoder, "2/6")


def test_bad_encoders_are_named(small_vae: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match="choose from 2/6, 4/4, 6/2"):
        layers(small_vae.encoder, "3/5")
    with pytest.raises(ValueError, match="no 'conv_in'"):
        layers(nn.Sequential(nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize("resampling", ["adaptive", "bilinear"])
def test_features_are_those_of_the_layers_and_the_latent_is_unchanged(small_vae: AutoencoderKL, resampling: str) -> None:
    """Against running the encoder's modules one after another by hand; and one pass only."""
    x = torch.randn(2, 3, 64, 64)
    chosen = [layer for layer in layers(small_vae.encoder) if layer.group in ("G3", "G4")]
    calls = []
    handle = small_vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    mean, std, got = encode(VAE(small_vae), x, chosen, 4, resampling)
    handle.remove()
    assert len(calls) == 1
    assert all(not m._forward_hooks for m in small_vae.modules())
    encoder = small_vae.encoder
    with torch.no_grad():
        h, outputs = encoder.conv_in(x), []
        for level, block in enumerate(encoder.down_blocks):
            for module in [*block.resnets, *(block.downsamplers or [])]:
                h = module(h, None) if module in list(block.resnets) else module(h)
                if level >= 2:
                    outputs.append(h)
        for module in (encoder.mid_block.resnets[0], encoder.mid_block.attentions[0], encoder.mid_block.resnets[1]):
            h = module(h) if module is encoder.mid_block.attentions[0] else module(h, None)
            outputs.append(h)
        posterior = small_vae.encode(x).latent_dist
    assert len(outputs) == 8

    def resample(f: torch.Tensor) -> torch.Tensor:
        if resampling == "adaptive":  # whole blocks here, so a mean over blocks
            k = f.shape[-1] // 4
            return f.unflatten(3, (4, k)).unflatten(2, (4, k)).mean(dim=(3, 5))
        return F.interpolate(f, size=4, mode="bilinear")

    expected = torch.stack([resample(f) for f in outputs], dim=1)
    torch.testing.assert_close(torch.cat([got["G3"], got["G4"]], dim=1), expected)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(std, posterior.std)


def test_adaptive_and_bilinear_differ_from_64_to_16() -> None:
    from gsnr.train.priors.features import RESAMPLINGS

    f = torch.randn(1, 3, 64, 64)
    assert (RESAMPLINGS["adaptive"](f, 16) - RESAMPLINGS["bilinear"](f, 16)).abs().max() > 0.1


def test_unknown_resampling(small_vae: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match="choose from adaptive, bilinear"):
        encode(VAE(small_vae), torch.zeros(1, 3, 64, 64), layers(small_vae.encoder), 4, "nearest")
