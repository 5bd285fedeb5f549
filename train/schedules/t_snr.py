"""By the signal-to-noise ratio at t: SNR(t) / (SNR(t) + SNR(xi)), SNR(t) = ((1 - t) / t)^2 (Stable Velocity, arXiv 2602.05435)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gsnr.options import option
from gsnr.train.schedules import TimeConfig, TimeSchedule


@dataclass(frozen=True, kw_only=True)
class Config(TimeConfig):
    xi: float = option(0.7, "time at which it is a half (Stable Velocity)", above=0, below=1)


class Schedule(TimeSchedule):
    def __init__(self, config: Config) -> None:
        self.snr_xi = ((1 - config.xi) / config.xi) ** 2
        super().__init__(config)

    def shape(self, t_B: Tensor) -> Tensor:
        """Multiplied out by t^2: at t = 0 it is 1, at t = 1 it is 0."""
        signal_B = (1 - t_B).square()
        return signal_B / (signal_B + t_B.square() * self.snr_xi)
