"""A table over t: one weight a bin, from a JSON file or from the command line.

    {"bins": [{"low": 0.0, "high": 0.3, "weight": 1.0}, {"low": 0.3, "high": 1.0, "weight": 0.2}]}
    --schedule t_table --schedule.edges 0,0.3,1 --schedule.weights 1,0.2

A bin holds its lower edge, the last one both. The bins are kept in the run's configuration: a resumed run does not need the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from gsnr.files import read_json
from gsnr.options import option
from gsnr.train.schedules import TimeConfig, TimeSchedule
from gsnr.train.schedules._bins import of_bins

EXAMPLE = {"edges": (0.0, 0.5, 1.0), "weights": (1.0, 0.25)}


@dataclass(frozen=True, kw_only=True)
class Config(TimeConfig):
    file: str = option("", "JSON file with the bins: low, high and weight of each")
    edges: tuple[float, ...] = option((), "edges of the bins, from 0 to 1, in place of a file")
    weights: tuple[float, ...] = option((), "weight of each bin, in place of a file")

    def resolved(self, section: str) -> Self:
        if self.file:
            if self.edges or self.weights:
                raise ValueError(f"{section}.file: has the edges and weights of the bins; leave out {section}.edges and {section}.weights")
            edges, weights = read_bins(Path(self.file), f"{section}.file")
            return replace(self, file="", edges=edges, weights=weights).resolved(section)
        if not self.edges:
            raise ValueError(f"{section}.file is missing: a JSON file of bins, or else {section}.edges and {section}.weights")
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights) or len(self.weights) != len(self.edges) - 1:
            raise ValueError(f"{section}.weights: {len(self.edges)} edges need {len(self.edges) - 1} finite weights of at least 0")
        rising = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if not rising or (self.edges[0], self.edges[-1]) != (0.0, 1.0):
            raise ValueError(f"{section}.edges: must rise from 0 to 1")
        if self.normalise and not any(self.weights):
            raise ValueError(f"{section}.normalise: the weight is 0 at every t")
        return self


def read_bins(path: Path, flag: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges and weights. Raises ValueError, naming flag and file, for bins that overlap, leave gaps, or do not go from 0 to 1."""
    try:
        values = read_json(path)
        bins = [(float(b["low"]), float(b["high"]), float(b["weight"])) for b in values["bins"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{flag} {path}: is no {{"bins": [{{"low": 0, "high": 1, "weight": 1}}, ...]}} ({error})') from error
    at = 0.0
    for low, high, _ in bins:
        if low != at or not high > low:
            raise ValueError(f"{flag} {path}: a bin from {low} to {high} where one from {at} on is needed; bins rise without a gap")
        at = high
    if at != 1:
        raise ValueError(f"{flag} {path}: the bins end at {at}, not at 1")
    return (0.0, *(high for _, high, _ in bins)), tuple(weight for _, _, weight in bins)


class Schedule(TimeSchedule):
    def __init__(self, config: Config) -> None:
        self.edges, self.weights = config.edges, config.weights
        super().__init__(config)

    def shape(self, t_B: Tensor) -> Tensor:
        return of_bins(t_B, self.edges, self.weights)
