"""diffusers' ConsistencyDecoderVAE (openai/consistency-decoder): SD's encoder with another decoder."""

from __future__ import annotations

from typing import Self

from diffusers import ConsistencyDecoderVAE

from gsnr.train.vaes._kl_encoder import KLEncoderVAE

CLASS_NAME = "ConsistencyDecoderVAE"


class VAE(KLEncoderVAE):
    stored = ConsistencyDecoderVAE

    @classmethod
    def example(cls) -> Self:
        decoder = {"decoder_block_out_channels": (32, 32, 32, 32), "decoder_layers_per_block": 1, "decoder_norm_num_groups": 8}
        return cls(ConsistencyDecoderVAE(encoder_block_out_channels=(8, 16, 32, 32), encoder_norm_num_groups=4, **decoder))
