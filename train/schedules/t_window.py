"""A window of t: 1 below xi, where the signal is, and 0 from there on (Stable Velocity's hard threshold, arXiv 2602.05435)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gsnr.options import option
from gsnr.train.schedules import TimeConfig, TimeSchedule


@dataclass(frozen=True, kw_only=True)
class Config(TimeConfig):
    xi: float = option(0.7, "time from which on it is 0 (Stable Velocity)", above=0, high=1)


class Schedule(TimeSchedule):
    def __init__(self, config: Config) -> None:
        self.xi = config.xi
        super().__init__(config)

    def shape(self, t_B: Tensor) -> Tensor:
        return (t_B < self.xi).to(t_B.dtype)
