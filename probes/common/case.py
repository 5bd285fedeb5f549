"""What criteria are given: rows (a target at a block, over a range of t) on one checkpoint, and the passes that several criteria share.

A row is a word of `gsnr fork` (`gsnr.train.forking.rows`), so that its criteria and its fork mean the same target, features and times. Every
alignment with a target gets a linear projector, solved in closed form on train images: the same rule for all rows, and no descent that has to
converge. Criteria are measured on held-out images. Shapes: B samples, T tokens, D width, C target channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from gsnr import plugins
from gsnr.probes.common.candidates import FIT, Candidate
from gsnr.probes.common.options import NONE, TargetOptions
from gsnr.probes.common.subject import Subject
from gsnr.probes.common.targets import unmeasured
from gsnr.train.alignments import TargetAlignment
from gsnr.train.config import TrainConfig
from gsnr.train.data import controls
from gsnr.train.forking.rows import ForkRow, config_of
from gsnr.train.objective import make_alignment

T = TypeVar("T")
Interval = tuple[float, float, float]  # value, and the ends of its 95 % interval; NaN where there is none
NAN = float("nan")
UNDEFINED: Interval = (NAN, NAN, NAN)

PICTURES = "reads pictures, which criteria do not show its teacher"


@dataclass(frozen=True, kw_only=True)
class Row:
    """fork: the word, taken apart. config: of a run that trains it. block: whose output is aligned; low, high: its range of t."""

    fork: ForkRow
    config: TrainConfig
    block: int
    low: float
    high: float

    @property
    def label(self) -> str:
        return self.fork.label

    @property
    def thing(self) -> str:
        """The target alone, whatever the block, weight and times: "shuffled:repa"."""
        return f"{self.fork.control}:{self.fork.name}"

    @property
    def weight(self) -> float:
        """lambda."""
        return float(self.config.alignment["weight"])

    @property
    def is_control(self) -> bool:
        return self.fork.control != NONE


def row_of(fork: ForkRow, subject: Subject, steps: int, changes: dict[str, Any]) -> Row:
    """Raises ValueError for a row that has no block of its own, or whose loss couples samples."""
    c = subject.checkpoint
    config = config_of(fork, c.config, 0, c.step, steps, changes)
    alignment = make_alignment(config.alignment, config.model, subject.header.groups)
    if len(alignment.parts) != 1 or alignment.tap is None:
        raise ValueError(f"--rows {fork.label}: has {len(alignment.parts)} alignments; criteria are of one target at one block")
    if said := unmeasured(alignment) or (PICTURES if alignment.config.pictures else ""):
        raise ValueError(f"--rows {fork.label}: {said}")
    if config.model.extra_token is not None:
        raise ValueError(f"{c.folder}: has a class token; criteria are of models without one")
    low, high = (0.0, 1.0) if fork.low is None or fork.high is None else (fork.low, fork.high)
    return Row(fork=fork, config=config, block=alignment.tap, low=low, high=high)


@dataclass(kw_only=True)
class Case:
    """sec: what each shared pass took, in seconds. lookahead: steps of criterion `lookahead`, 0 for none; out: where its forks lie."""

    subject: Subject
    rows: list[Row]
    options: TargetOptions
    train_images: int = 512
    lookahead: int = 0
    out: Path | None = None
    sec: dict[str, float] = field(default_factory=dict)
    passes: dict[str, Any] = field(default_factory=dict)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """A pass that several criteria read: made by the first, and timed."""
        if name not in self.passes:
            with self._timed(name):
                self.passes[name] = make()
        found: T = self.passes[name]
        return found

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Adds what it takes to `sec`, without what passes inside it take."""
        start, before = time.perf_counter(), sum(self.sec.values())
        yield
        inside = sum(self.sec.values()) - before
        self.sec[name] = self.sec.get(name, 0.0) + time.perf_counter() - start - inside

    def under(self, control: str, block: int | None = None) -> Subject:
        """The checkpoint, its data under a control, at a block."""
        splits = controls.controlled(self.subject.splits, control, self.options.seed)
        return replace(self.subject, splits=splits, at=block)

    def groups(self, *keys: str) -> dict[tuple[Any, ...], list[Row]]:
        """The rows by some of control, block, low, high."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            named = {"control": row.fork.control, "block": row.block, "low": row.low, "high": row.high}
            found.setdefault(tuple(named[key] for key in keys), []).append(row)
        return found

    def made(self) -> dict[str, Candidate]:
        """row -> its alignment, with a linear projector that is not fitted yet."""
        if "made" not in self.passes:
            self.passes["made"] = {row.label: _candidate(row, self.under(row.fork.control, row.block), self.options.seed) for row in self.rows}
        found: dict[str, Candidate] = self.passes["made"]
        return found


def _candidate(row: Row, subject: Subject, seed: int) -> Candidate:
    torch.manual_seed(seed)
    model = subject.checkpoint.config.model
    alignment = make_alignment(row.config.alignment, model, subject.header.groups)
    alignment.calibrate(subject.splits["train"])
    if not isinstance(alignment, TargetAlignment):
        return Candidate(target=row.label, control=NONE, projector=NONE, alignment=alignment.to(subject.device))
    channels = alignment.projector(torch.zeros(1, model.grid**2, model.hidden_size)).shape[-1]
    alignment.projector = plugins.find("projectors", "linear").Projector(model.hidden_size, channels, model.grid)
    return Candidate(target=row.label, control=NONE, projector=FIT, alignment=alignment.to(subject.device))


def on_all(case: Case, value: Callable[[Row], Interval]) -> Mapping[str, Interval]:
    """row -> what a criterion says of it."""
    return {row.label: value(row) for row in case.rows}
