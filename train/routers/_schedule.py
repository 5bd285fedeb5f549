"""Fixed schedules between mid and deep: uniform within the groups, beta a given function of t, no parameters."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from gsnr.train.routers import RouterConfig, RouterModule


class Schedule(RouterModule):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config)
        if tuple(config.sizes) != ("mid", "deep"):
            raise ValueError(f"a schedule goes from mid to deep; alignment.source must be 'both', not {', '.join(config.sizes)}")

    @abstractmethod
    def deep(self, t_B: Tensor) -> Tensor:
        """(B,): the share of deep, from 0 to 1."""

    def logits(self, t_B: Tensor, h_BTD: Tensor | None) -> Tensor:
        return t_B.new_zeros(len(t_B), self.config.logits)

    def forward(self, t_B: Tensor, h_BTD: Tensor | None = None) -> dict[str, Tensor]:
        deep_B = self.deep(t_B.float())
        return super().forward(t_B, h_BTD) | {"beta": torch.stack([1 - deep_B, deep_B], dim=-1)}
