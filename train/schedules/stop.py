"""Stop: 1 up to a step, 0 afterwards (HASTE, Wang et al. 2025, arXiv 2505.16792: after 100K steps of SiT-B, 250K of L and XL)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsnr.options import option
from gsnr.train.schedules import ScheduleConfig, WeightSchedule


@dataclass(frozen=True, kw_only=True)
class Config(ScheduleConfig):
    at: int = option(100_000, "last step with the loss (HASTE: 100000 of B, 250000 of L and XL, 300000 at 512)", low=1, high=10**9)


class Schedule(WeightSchedule):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.last = config.at

    def weight(self, step: int, t_B: Tensor) -> Tensor:
        return torch.full_like(t_B, 0.0 if self.over(step) else 1.0, dtype=torch.float32)
