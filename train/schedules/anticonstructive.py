"""Anticonstructive: the mirror of `constructive`, 1 - I+^2 / (I+^2 + SE^2): full weight where the alignment does not descend denoising (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsnr.train.schedules._measured import MeasuredConfig, MeasuredSchedule, Reading, agreement, agreement_of_cell

EXAMPLE = {"edges": (0.0, 0.5, 1.0), "values": (0.9, 0.1)}


@dataclass(frozen=True, kw_only=True)
class Config(MeasuredConfig):
    def of_cell(self, cell: Mapping[str, Any]) -> float:
        return agreement_of_cell(cell)


class Schedule(MeasuredSchedule):
    def value(self, reading: Reading) -> float:
        return agreement(reading.inner / reading.inner_se) if reading.inner_se > 0 else 0.0

    def factor(self, value: float, width: float) -> float:
        return 1 - value
