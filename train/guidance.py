"""Classifier-free guidance (Ho and Salimans 2022) on an interval of t (Kynkaanniemi et al. 2024): v = v_null + w (v_y - v_null).

Two passes of B samples, not one of 2 B: the conditional half keeps the bits that it has without guidance, and a pass takes no more memory.
The class token of a model that has one is guided too, with the latents or by a weight and an interval of its own (REG).
Shapes: B samples, latent (C,H,W), class token (E,).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gsnr.train.models.backbone import Backbone
from gsnr.train.samplers import State, Velocity


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """weight: w; 1 is none, and makes no unconditional pass. low, high: where it guides, low <= t <= high, with t = 1 noise. channels: how many
    latent channels, from the first, are guided (3 in DiT and SiT), the others keep v_y; None: all. token: of the class token (None: as the
    latents).

    Raises ValueError for a weight below 1, an interval upside down or outside [0, 1], and no channel."""

    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0
    channels: int | None = None
    token: Guidance | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.weight < float("inf"):
            raise ValueError(f"guidance weight {self.weight}: must be a number of at least 1, which is none")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"guidance interval {self.low} to {self.high}: must be 0 <= LOW <= HIGH <= 1 (t = 1 is noise)")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guided channels {self.channels}: must be at least 1, or all")

    @property
    def used(self) -> bool:
        """Whether anything is guided at all."""
        return self.weight != 1 or (self.token is not None and self.token.used)

    def guides(self, t: float) -> bool:
        """Whether the latents are guided at t."""
        return self.weight != 1 and self.low <= t <= self.high

    def at(self, t: float) -> bool:
        """Whether there is an unconditional pass at t."""
        return self.guides(t) or (self.token is not None and self.token.guides(t))

    def combined(self, conditional: Tensor, unconditional: Tensor, t: float) -> Tensor:
        """The guided velocity of latents, or of class tokens."""
        if not self.guides(t):
            return conditional
        guided = unconditional + self.weight * (conditional - unconditional)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], conditional[:, self.channels :]], dim=1)


def velocity_of(model: Backbone, y: Tensor, guidance: Guidance | None = None) -> Velocity:
    """The guided velocity under the conditions y, float64; the model computes in its own dtype, and says what no condition is. Of a
    model with a class token it is a pair, of a pair."""
    dtype = next(model.parameters()).dtype
    by = guidance or Guidance()
    of_token = by.token or replace(by, channels=None)

    def passed(state: State, t: float, given: Tensor) -> tuple[Tensor, ...]:
        x, *extra = (part.to(dtype) for part in (state if isinstance(state, tuple) else (state,)))
        t_B = torch.full((len(x),), t, dtype=dtype, device=x.device)
        found = model(x, t_B, given, extra=extra[0]) if extra else (model(x, t_B, given),)
        return tuple(part.double() for part in found)

    def velocity(state: State, t: float) -> State:
        found = passed(state, t, y)
        if by.at(t):
            without = passed(state, t, model.null(y))
            parts = zip((by, of_token), found, without, strict=False)
            found = tuple(its.combined(conditional, unconditional, t) for its, conditional, unconditional in parts)
        return (found[0], found[1]) if isinstance(state, tuple) else found[0]

    return velocity
