"""Classifier-free guidance (Ho and Salimans 2022) on an interval of t (Kynkaanniemi et al. 2024): v = v_null + w (v_class - v_null).

Two passes of B samples, not one of 2 B: the conditional half keeps the bits that it has without guidance, and a pass takes no more memory.
Shapes: B samples, latent (C,H,W).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gsnr.train.samplers import Velocity


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """weight: w; 1 is none, and makes no unconditional pass. low, high: where it guides, low <= t <= high, with t = 1 noise. channels: how many
    latent channels, from the first, are guided (3 in DiT and SiT), the others keep v_class; None: all.

    Raises ValueError for a weight below 1, an interval upside down or outside [0, 1], and no channel."""

    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0
    channels: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.weight < float("inf"):
            raise ValueError(f"guidance weight {self.weight}: must be a number of at least 1, which is none")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"guidance interval {self.low} to {self.high}: must be 0 <= LOW <= HIGH <= 1 (t = 1 is noise)")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guided channels {self.channels}: must be at least 1, or all")

    def at(self, t: float) -> bool:
        """Whether there is an unconditional pass at t."""
        return self.weight != 1 and self.low <= t <= self.high


def velocity_of(model: nn.Module, y_B: Tensor, null_class: int, guidance: Guidance | None = None) -> Velocity:
    """The guided velocity of a model of classes y, float64; the model computes in its own dtype. model(x, t, y): see `gsnr.train.models.sit`."""
    dtype = next(model.parameters()).dtype
    by = guidance or Guidance()

    def velocity(x_BCHW: Tensor, t: float) -> Tensor:
        x, t_B = x_BCHW.to(dtype), torch.full((len(x_BCHW),), t, dtype=dtype, device=x_BCHW.device)
        conditional: Tensor = model(x, t_B, y_B).double()
        if not by.at(t):
            return conditional
        unconditional = model(x, t_B, torch.full_like(y_B, null_class)).double()
        guided = unconditional + by.weight * (conditional - unconditional)
        if by.channels is None:
            return guided
        return torch.cat([guided[:, : by.channels], conditional[:, by.channels :]], dim=1)

    return velocity
