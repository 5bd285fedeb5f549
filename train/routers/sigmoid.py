"""`sigmoid`: beta_deep = 1 / (1 + exp(-10 (t - 1/2))), the hand-tuned schedule that AHPA's App. D.3 mentions; its slope and centre are ours."""

from __future__ import annotations

from torch import Tensor

from gsnr.train.routers._schedule import Schedule

SLOPE, CENTRE = 10.0, 0.5


class Router(Schedule):
    def deep(self, t_B: Tensor) -> Tensor:
        return (SLOPE * (t_B - CENTRE)).sigmoid()
