"""A stranger's schedule: the loss is there in one of every few steps, and in none after the last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsnr.options import option
from gsnr.train.schedules import ScheduleConfig, WeightSchedule


@dataclass(frozen=True, kw_only=True)
class Config(ScheduleConfig):
    every: int = option(4, "steps from one with the loss to the next", low=1)
    times: int = option(5, "how many have it", low=1)


class Schedule(WeightSchedule):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.every, self.last = config.every, config.every * config.times

    def weight(self, step: int, t_B: Tensor) -> Tensor:
        on = step % self.every == 0 and not self.over(step)
        return torch.full_like(t_B, float(on), dtype=torch.float32)
