"""What diffusers' autoencoders share: how they are stored, their scaling factor, their decoder."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from gsnr.train.data.latents import Scaling
from gsnr.train.vaes import FrozenVAE


class DiffusersVAE(FrozenVAE):
    """stored: the class in diffusers."""

    stored: ClassVar[Any]
    model: Any

    @classmethod
    def open(cls, source: str) -> Self:
        """source: a folder or hub id."""
        model, notes = cls.stored.from_pretrained(source, output_loading_info=True)
        lacking = [*notes["missing_keys"], *notes["mismatched_keys"]]
        if lacking:
            raise ValueError(f"its weights lack {lacking[0]}")
        return cls(model)

    @property
    def encoder(self) -> nn.Module:
        return self.model.encoder

    @property
    def channels(self) -> int:
        return int(self.model.config.latent_channels)

    @property
    def scaling(self) -> Scaling | None:
        """final = factor (raw - shift); None where config.json says `scaling_factor: null`."""
        config = self.model.config
        if config.scaling_factor is None:
            return None
        factor, shift = float(config.scaling_factor), config.get("shift_factor")
        if not shift:
            return Scaling(factor=factor)
        return Scaling(factor=factor, channel_scale=(1.0,) * self.channels, channel_bias=(float(shift),) * self.channels)

    @property
    def settings(self) -> str:
        factor, shift = self.model.config.scaling_factor, self.model.config.get("shift_factor")
        return f"scaling_factor {None if factor is None else float(factor)!r};" + (f"shift_factor {float(shift)!r};" if shift else "")

    def decode(self, raw_BChw: Tensor) -> Tensor:
        """A Consistency decoder draws noise from the global state."""
        return self.model.decode(raw_BChw).sample
