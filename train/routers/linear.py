"""`linear`: beta = (1 - t, t), from mid at the data to deep at the noise (AHPA Table D.15, "Heuristic (Linear)")."""

from __future__ import annotations

from torch import Tensor

from gsnr.train.routers._schedule import Schedule


class Router(Schedule):
    def deep(self, t_B: Tensor) -> Tensor:
        return t_B
