"""Schedules: what a loss is multiplied by, sample by sample, as a function of the step and of t. One file each, found by name; a file has

    class Config(ScheduleConfig)           frozen dataclass: its options and their defaults, each with its source
    class Schedule(WeightSchedule)         built as Schedule(config)
    EXAMPLE = {"at": 5}                    options for the contract, where there is no schedule without any (optional)

Or, of t alone, Config(TimeConfig) and Schedule(TimeSchedule), which can be normalised. The factor stands beside the constant weight of the
alignment, and any alignment takes any schedule: `--schedule` is of its loss, `--velocity-schedule` of the velocity loss.

Shapes: B samples. step: of training, the first is 1. t: (B,) in [0, 1], t = 1 is noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from gsnr import plugins
from gsnr.options import option
from gsnr.train.config import schedule_config

POINTS = 2**18  # of t, at the middles of equal bins, over which a mean is taken; that of a jump is off by at most 2e-6


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What all schedules have: no option."""

    def resolved(self, section: str) -> Self:
        """Itself with everything filled in that lies elsewhere (in a file). section: what errors are to call its options, "schedule" say.

        Raises ValueError, naming the option, for options that do not go together."""
        return self

    def for_batch(self, batch: int) -> Self:
        """Itself with everything filled in that depends on the run's batch."""
        return self


class WeightSchedule(ABC):
    """What the trainer calls. last: the last step whose weight is not 0; None where it never is 0 for good. After it neither teacher nor tap is
    computed, and no feature read."""

    last: int | None = None

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config

    @abstractmethod
    def weight(self, step: int, t_B: Tensor) -> Tensor:
        """(B,) float32, at least 0, on the device of t."""

    def over(self, step: int) -> bool:
        """The weight is 0 in this step and in all later ones."""
        return self.last is not None and step > self.last


@dataclass(frozen=True, kw_only=True)
class TimeConfig(ScheduleConfig):
    """What schedules over t alone have."""

    normalise: bool = option(False, "divide by the mean over t, uniform in [0, 1], so that `weight` means the same budget (Stable Velocity)")


class TimeSchedule(WeightSchedule):
    """A schedule over t alone. A subclass sets all that `shape` reads before it calls the constructor here.

    Raises ValueError for one that is 0 everywhere and is to be normalised."""

    def __init__(self, config: TimeConfig) -> None:
        super().__init__(config)
        self.scale = 1.0
        if config.normalise:
            mean = self.mean()
            if not mean > 0:
                raise ValueError("normalise: the weight is 0 at every t")
            self.scale = 1 / mean

    @abstractmethod
    def shape(self, t_B: Tensor) -> Tensor:
        """(B,) of the dtype of t, at least 0: the weight before it is normalised."""

    def mean(self) -> float:
        """Of `shape` over t, uniform in [0, 1]."""
        return self.shape((torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS).mean().item()

    def weight(self, step: int, t_B: Tensor) -> Tensor:
        return self.shape(t_B.float()) * self.scale


def make_schedule(values: Mapping[str, Any], section: str = "schedule") -> WeightSchedule:
    """The schedule that a configuration names. Raises ValueError as `schedule_config` does."""
    schedule: WeightSchedule = plugins.find("schedules", values.get("name", "constant")).Schedule(schedule_config(values, section))
    return schedule
