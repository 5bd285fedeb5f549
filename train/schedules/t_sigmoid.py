"""A sigmoid of t: sigma(k (xi - t)), near 1 at the data and near 0 at the noise (Stable Velocity's soft threshold, arXiv 2602.05435)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gsnr.options import option
from gsnr.train.schedules import TimeConfig, TimeSchedule


@dataclass(frozen=True, kw_only=True)
class Config(TimeConfig):
    xi: float = option(0.7, "time at which it is a half (Stable Velocity)", low=0, high=1)
    k: float = option(20.0, "steepness (ours: we have not read the paper's)", above=0, high=1e6)


class Schedule(TimeSchedule):
    def __init__(self, config: Config) -> None:
        self.xi, self.k = config.xi, config.k
        super().__init__(config)

    def shape(self, t_B: Tensor) -> Tensor:
        return (self.k * (self.xi - t_B)).sigmoid()
