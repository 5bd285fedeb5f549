"""Decay: 1 up to a step, then a tenth of itself every so many steps (what SRA's code does after epoch 149 of B, 99 of L and XL).

Its code counts epochs, of 5004 steps on ImageNet at batch 256. It never is 0: the teacher costs what it did.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsnr.options import option
from gsnr.train.schedules import ScheduleConfig, WeightSchedule


@dataclass(frozen=True, kw_only=True)
class Config(ScheduleConfig):
    start: int = option(750_000, "last step of weight 1 (150 epochs of ImageNet at batch 256)", low=0, high=10**9)
    tenth: int = option(500_000, "steps in which it falls to a tenth (SRA does not say; ours)", low=1, high=10**9)


class Schedule(WeightSchedule):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.start, self.tenth = config.start, config.tenth

    def weight(self, step: int, t_B: Tensor) -> Tensor:
        return torch.full_like(t_B, 0.1 ** (max(0, step - self.start) / self.tenth), dtype=torch.float32)
