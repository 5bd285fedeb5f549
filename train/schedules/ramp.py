"""Ramp: one weight up to a step, another from a later step on, and a line or half a cosine between them.

Down to 0 (RARE's release, arXiv 2609.34732, is a cosine), or up from 0 (REED's velocity loss, arXiv 2507.08980, over the first 50K steps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gsnr.options import option
from gsnr.train.schedules import ScheduleConfig, WeightSchedule

SHAPES = ("linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class Config(ScheduleConfig):
    start: int = option(0, "last step of the first weight", low=0, high=10**9)
    end: int = option(100_000, "first step of the second weight; after `start`", low=1, high=10**9)
    before: float = option(1.0, "the first weight", low=0, high=1e6)
    after: float = option(0.0, "the second weight", low=0, high=1e6)
    shape: str = option("linear", "between them", SHAPES)

    def resolved(self, section: str) -> Self:
        if self.end <= self.start:
            raise ValueError(f"{section}.end {self.end}: the ramp would end before it starts, at {section}.start {self.start}")
        return self


class Schedule(WeightSchedule):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.start, self.end, self.before, self.after = config.start, config.end, config.before, config.after
        self.cosine = config.shape == "cosine"
        self.last = config.end - 1 if config.after == 0 else None

    def weight(self, step: int, t_B: Tensor) -> Tensor:
        share = min(1.0, max(0.0, (step - self.start) / (self.end - self.start)))
        if self.cosine and share < 1:
            share = (1 - math.cos(math.pi * share)) / 2
        return torch.full_like(t_B, self.before + (self.after - self.before) * share, dtype=torch.float32)
