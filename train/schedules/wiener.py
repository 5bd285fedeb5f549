"""Wiener: less weight where the alignment gradient is noise, c = B gsnr / (1 + B gsnr), at an equal budget (ours, after Wiener's filter).

Of a batch's B w samples in a bin of width w the mean gradient is G; c G is what comes closest to the true gradient in mean square. Needs no
gradient of denoising, and does not say whether the alignment helps. A G-SNR below 0 counts as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsnr.options import option
from gsnr.train.schedules._measured import MeasuredConfig, MeasuredSchedule, Reading

EXAMPLE = {"edges": (0.0, 0.5, 1.0), "values": (0.02, 0.001), "batch": 256}


@dataclass(frozen=True, kw_only=True)
class Config(MeasuredConfig):
    normalise: bool = option(True, "divide by the mean over t, so that `weight` means the same budget")

    def of_cell(self, cell: Mapping[str, Any]) -> float:
        return float(cell["gsnr"]) if cell["gsnr"] == cell["gsnr"] else 0.0


class Schedule(MeasuredSchedule):
    def value(self, reading: Reading) -> float:
        return reading.gsnr

    def factor(self, value: float, width: float) -> float:
        ratio = self.options.batch * width * max(0.0, value)
        return ratio / (1 + ratio)
