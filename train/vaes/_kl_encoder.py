"""Encoders of AutoencoderKL's shape: a Gaussian posterior, and layers walked block by block (AHPA, Sec. 4.2, Table A.8).

The walk: `conv_in`, then each level's resnets and downsampler, then the mid block. SD-VAE, SDXL's, the Consistency
decoder's and the demo's all give the paper's 15 layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gsnr.train.priors.layers import Layer
from gsnr.train.vaes._diffusers import DiffusersVAE

SPLITS = ("2/6", "4/4", "6/2")  # how many of the eight widest layers are mid / deep (Table D.14); 2/6 is also "by resolution"


class KLEncoderVAE(DiffusersVAE):
    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.model.encoder.down_blocks) - 1)

    @property
    def layers(self) -> list[Layer]:
        return layers(self.model.encoder)

    def encode(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(images_BCHW).latent_dist
        return posterior.mean, posterior.std


def _walk(encoder: Any) -> Iterator[tuple[str, int]]:
    """(name under `encoder.`, level) of every layer in the order it runs. Raises ValueError naming a block that is missing."""
    for name in ("conv_in", "down_blocks", "mid_block"):
        if not isinstance(getattr(encoder, name, None), nn.Module):
            raise ValueError(f"VAE: its encoder has no {name!r}; an AutoencoderKL encoder (conv_in, down_blocks, mid_block) is needed")
    yield "conv_in", 0
    for level, block in enumerate(encoder.down_blocks):
        yield from ((f"down_blocks.{level}.resnets.{j}", level) for j in range(len(block.resnets)))
        yield from ((f"down_blocks.{level}.downsamplers.{j}", level) for j in range(len(block.downsamplers or ())))
    last = len(encoder.down_blocks) - 1
    resnets, attentions = encoder.mid_block.resnets, [a for a in encoder.mid_block.attentions if a is not None]
    for j in range(len(resnets)):
        yield f"mid_block.resnets.{j}", last
        if j < len(attentions):
            yield f"mid_block.attentions.{j}", last


def _channels(module: nn.Module) -> int:
    """Output channels of the last convolution or linear layer within a module (residual blocks, samplers and attention end in one)."""
    last = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    return last.out_channels if isinstance(last, nn.Conv2d) else last.out_features


def layers(encoder: nn.Module, split: str = "4/4") -> list[Layer]:
    """The encoder's layers with their groups.

    Where the last two levels and the mid block make eight layers of one width, `split` divides them into mid (G3) and deep (G4); in any
    other encoder the last level and the mid block are deep, the level before is mid, and `split` must be left at its default. The level
    below is G2 and all before it G1. Raises ValueError for an unknown split, one that cannot apply, or an encoder of fewer than two levels.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist; choose from {', '.join(SPLITS)}")
    walked = [(name, level, _channels(encoder.get_submodule(name))) for name, level in _walk(encoder)]
    last = max(level for _, level, _ in walked)
    if last < 1:
        raise ValueError("VAE: its encoder has one level; mid and deep groups need at least two")
    top = [i for i, (_, level, _) in enumerate(walked) if level >= last - 1]
    by_split = last == 3 and len(top) == 8 and len({walked[i][2] for i in top}) == 1
    if not by_split and split != SPLITS[1]:
        raise ValueError(f"split {split!r} needs eight layers of one width in the last two levels; this VAE is grouped by level instead")
    deep_from = top[int(split.split("/")[0])] if by_split else next(i for i in top if walked[i][1] == last)

    def group(i: int, level: int) -> str:
        if i in top:
            return "G4" if i >= deep_from else "G3"
        return "G2" if level == last - 2 else "G1"

    return [Layer(number=i + 1, name=name, channels=channels, level=level, group=group(i, level)) for i, (name, level, channels) in enumerate(walked)]
