"""diffusers' AutoencoderTiny (madebyollin/taesd, taesdxl): distilled, without a posterior.

Its encoder is a sequence of stages at half the resolution each, a convolution and residual blocks. The layers are the
blocks; the last stage is deep (G4), the one before mid (G3), then G2, and all before it G1.
"""

from __future__ import annotations

from typing import Self

from diffusers import AutoencoderTiny
from torch import Tensor

from gsnr.train.priors.layers import GROUPS, Layer
from gsnr.train.vaes._diffusers import DiffusersVAE

CLASS_NAME = "AutoencoderTiny"


class VAE(DiffusersVAE):
    stored = AutoencoderTiny

    @classmethod
    def example(cls) -> Self:
        widths = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
        return cls(AutoencoderTiny(num_encoder_blocks=(1, 2, 2, 2), num_decoder_blocks=(1, 1, 1, 1), **widths))

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.model.config.num_encoder_blocks) - 1)

    @property
    def layers(self) -> list[Layer]:
        config = self.model.config
        found: list[Layer] = []
        place = 0  # in the sequence
        for level, blocks in enumerate(config.num_encoder_blocks):
            group = GROUPS[max(0, level - len(config.num_encoder_blocks) + len(GROUPS))]
            for _ in range(blocks):
                place += 1
                width = config.encoder_block_out_channels[level]
                found.append(Layer(number=len(found) + 1, name=f"layers.{place}", channels=width, level=level, group=group))
            place += 1
        return found

    def encode(self, images_BCHW: Tensor) -> tuple[Tensor, None]:
        return self.model.encode(images_BCHW).latents, None
