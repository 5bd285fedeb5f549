"""What `wiener`, `constructive` and `anticonstructive` share: a weight a bin of t, from what is measured of the alignment gradient.

Measured while it trains (--gsnr-every, --gsnr-bins), on fixed held-out images, and averaged over measurements; or once, by `gsnr probe` on a
checkpoint of another run, whose table is named: then the values are kept in the run's configuration, and the file is not needed again.
Until the first measurement every weight is 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from gsnr import table
from gsnr.intervals import student
from gsnr.options import option
from gsnr.train.schedules import TimeConfig, TimeSchedule
from gsnr.train.schedules._bins import of_bins


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of the alignment gradient in one bin of t, on held-out images: its G-SNR, a sample; I and its standard error, `gsnr.comparison`."""

    low: float
    high: float
    gsnr: float
    inner: float
    inner_se: float


@dataclass(frozen=True, kw_only=True)
class MeasuredConfig(TimeConfig):
    table: str = option("", "alignment.parquet of `gsnr probe`, in place of measuring while it trains")
    target: str = option("", "target of that table, where it has several")
    average: float = option(0.9, "decay of the average over measurements, one of them a step (ours)", low=0, below=1)
    batch: int = option(0, "samples of a batch (default: those of the run)", low=0, high=2**20)
    edges: tuple[float, ...] = option((), "of the bins of t, from 0 to 1; read from the table")
    values: tuple[float, ...] = option((), "measured value of each bin; read from the table")

    def of_cell(self, cell: Mapping[str, Any]) -> float:
        """The measured value, from a row of an alignment table."""
        raise NotImplementedError

    def for_batch(self, batch: int) -> Self:
        return replace(self, batch=self.batch or batch)

    def resolved(self, section: str) -> Self:
        if section != "schedule":
            raise ValueError(f"{section}: it is the alignment's gradient that is measured; it goes with --schedule alone")
        if self.table:
            edges, cells = read_cells(Path(self.table), self.target, section)
            return replace(self, table="", target="", edges=edges, values=tuple(self.of_cell(cell) for cell in cells))
        if len(self.values) != max(0, len(self.edges) - 1):
            raise ValueError(f"{section}.values: {len(self.edges)} edges need {max(0, len(self.edges) - 1)} values")
        return self


def read_cells(path: Path, target: str, section: str) -> tuple[tuple[float, ...], list[dict[str, Any]]]:
    """Edges of the bins and a row of the table for each: of the backbone, the checkpoint's own projector unless there is a fitted one. Raises
    ValueError, naming option and file, for a table that is not there, several checkpoints or targets, or bins that are not all of t."""
    try:
        cells = table.read(path, "alignment")
    except ValueError as error:
        raise ValueError(f"{section}.table {error}") from error
    cells = cells[(cells["group"] == "all") & (cells["control"] == "none")]
    if len(cells[["run", "checkpoint"]].drop_duplicates()) != 1:
        raise ValueError(f"{section}.table {path}: is about several checkpoints; probe one")
    targets = list(dict.fromkeys(cells["target"]))
    if target not in targets and (target or len(targets) != 1):
        raise ValueError(f"{section}.target {target!r}: {path} has {', '.join(targets)}")
    cells = cells[cells["target"] == (target or targets[0])]
    kind = next(kind for kind in ("fit", "ckpt", "fresh", "none") if kind in set(cells["projector"]))
    cells = cells[cells["projector"] == kind].sort_values("bin")
    edges = (*cells["t_low"], float(cells["t_high"].iloc[-1]))
    if (edges[0], edges[-1]) != (0.0, 1.0) or list(cells["t_high"][:-1]) != list(cells["t_low"][1:]):
        raise ValueError(f"{section}.table {path}: its bins are not all of t; probe bins from 0 to 1")
    return tuple(map(float, edges)), [{str(key): value for key, value in row.items()} for row in cells.to_dict("records")]


def agreement(ratio: float) -> float:
    """z^2 / (z^2 + 1) of z = I / SE, 0 where I is not positive or nothing is known of it."""
    return ratio**2 / (ratio**2 + 1) if ratio > 0 else 0.0


def agreement_of_cell(cell: Mapping[str, Any]) -> float:
    """The same from a cosine and its interval: of I / SE a table keeps no more, and where the signals are resolved the ratio is the same."""
    se = (cell["cos_high"] - cell["cos_low"]) / 2 / student(int(cell["n"]), 0.95)
    return agreement(cell["cos_denoise"] / se) if se > 0 else 0.0


class MeasuredSchedule(TimeSchedule):
    """A subclass says what is averaged over measurements, and what weight that makes. live: it is measured while it trains."""

    def __init__(self, config: MeasuredConfig) -> None:
        self.live = not config.edges
        self.options, self.edges, self.values = config, config.edges or (0.0, 1.0), list(config.values)
        self.weights = self._weights() if self.values else [1.0]
        super().__init__(config)

    @abstractmethod
    def value(self, reading: Reading) -> float:
        """What is averaged over measurements; NaN where there is nothing to average."""

    @abstractmethod
    def factor(self, value: float, width: float) -> float:
        """The weight of a bin of this width in t, at least 0, before it is normalised."""

    def _weights(self) -> list[float]:
        return [self.factor(value, high - low) for value, low, high in zip(self.values, self.edges, self.edges[1:], strict=False)]

    def shape(self, t_B: Tensor) -> Tensor:
        return of_bins(t_B, self.edges, self.weights)

    def observe(self, readings: Sequence[Reading]) -> None:
        """Is shown a measurement of the training, a reading a bin. Where every weight would be 0 and is to be normalised, those from before stay."""
        if not self.live or not readings:
            return
        edges, kept = (readings[0].low, *(r.high for r in readings)), self.options.average
        measured = [0.0 if value != value else value for value in map(self.value, readings)]
        if edges == tuple(self.edges) and self.values:
            measured = [kept * before + (1 - kept) * new for before, new in zip(self.values, measured, strict=True)]
        self.edges, self.values = edges, measured
        self._take(self._weights())

    def _take(self, weights: list[float]) -> None:
        before, self.weights = self.weights, weights
        if self.options.normalise and not self.mean() > 0:
            self.weights = before if len(before) == len(weights) else [1.0] * len(weights)
        self.scale = 1 / self.mean() if self.options.normalise else 1.0

    def state(self) -> dict[str, Any]:
        """What it has made of the measurements, for a checkpoint; `restore` puts it back."""
        return {"edges": list(self.edges), "values": self.values, "weights": self.weights} if self.live else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.live and state:
            self.edges, self.values = tuple(state["edges"]), list(state["values"])
            self._take(list(state["weights"]))


@dataclass(frozen=True, kw_only=True)
class AgreementConfig(MeasuredConfig):
    """Of schedules that follow how surely the alignment's gradient descends denoising too."""

    def of_cell(self, cell: Mapping[str, Any]) -> float:
        return agreement_of_cell(cell)


class AgreementSchedule(MeasuredSchedule):
    """Averages `agreement`; a subclass says what weight it makes."""

    def value(self, reading: Reading) -> float:
        return agreement(reading.inner / reading.inner_se) if reading.inner_se > 0 else 0.0
