"""diffusers' AutoencoderKL: SD (sd-vae-ft-mse, -ema), SDXL, the demo's."""

from __future__ import annotations

from typing import Self

from diffusers import AutoencoderKL

from gsnr.train.vaes._kl_encoder import KLEncoderVAE

CLASS_NAME = "AutoencoderKL"


class VAE(KLEncoderVAE):
    stored = AutoencoderKL

    @classmethod
    def example(cls) -> Self:
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return cls(AutoencoderKL(block_out_channels=(8, 16, 32, 32), layers_per_block=2, norm_num_groups=4, **blocks))
