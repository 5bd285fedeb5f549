"""Constant: 1 at every step and every t."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsnr.train.schedules import ScheduleConfig, WeightSchedule


@dataclass(frozen=True, kw_only=True)
class Config(ScheduleConfig):
    pass


class Schedule(WeightSchedule):
    def weight(self, step: int, t_B: Tensor) -> Tensor:
        return torch.ones_like(t_B, dtype=torch.float32)
