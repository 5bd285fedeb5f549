"""`gsnr.verdict`: what a table of alignment gradients lets one say, per target and range of t, and in two sentences. Importable without torch.

A bin says something of a target where its gradient is detected (its 95 % interval lies above 0) and, if controls were measured, stands above them
by the paired test of the table (`above_floor`). There its angle to the denoising gradient is `with` or `against` where the angle's 95 % interval
does not hold 0. A target is easy where a constant vector reaches the share `gsnr.table.EASY` of its projector's cosine.

Of as many cells as a table has, some pass a test at 95 % by chance. So sentences speak of a single bin only where its gradient and its angle would
be found at 95 % for all cells of the table at once (Bonferroni), and else of ranges of at least two adjacent bins, where t has five or more.
They never rank targets: a table of cells holds no paired test between two of them (`gsnr tables` makes those, from the samples).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from gsnr import table
from gsnr.intervals import student_interval
from gsnr.table import EASY, target_name

TABLE, METRICS = "alignment.parquet", "alignment.metrics.parquet"
FIVE_BINS = 5
UNRESOLVED, NO_FLOOR, AT_FLOOR, ABOVE = "not resolved", "resolved, no control", "not above its control", "above its control"
WITH, AGAINST, UNCLEAR = "with", "against", "unclear"
BY_CONSTRUCTION = "A model that was trained with its target is so near its optimum, whether the target helped or not."
CAVEAT = "An agreeing gradient is not yet a better model: that takes a run with and a run without."
COLUMNS = ["target", "t_low", "t_high", "bins", "gradient", "denoising", "easy", "underfit", "sure"]


@dataclass(frozen=True)
class Range:
    """Adjacent bins of which the same can be said. denoising: the angle to its gradient, "" where the target's is not resolved.
    sure: one of the bins would be found at 95 % for all cells of the table at once."""

    target: str
    t_low: float
    t_high: float
    bins: int
    gradient: str
    denoising: str
    easy: bool
    underfit: bool
    sure: bool

    @property
    def says(self) -> bool:
        """Whether the target's own gradient is there to speak of."""
        return self.gradient in (ABOVE, NO_FLOOR) and not self.underfit


@dataclass(frozen=True)
class Verdict:
    """What `verdict` returns; `print(verdict)` shows all of it. ranges: by target, t ascending; least: bins that a range needs to be spoken of,
    unless one of them is sure; controls: whether any were measured."""

    title: str
    ranges: tuple[Range, ...]
    least: int
    controls: bool

    def _where(self, direction: str, least: int) -> str:
        """ "AHPA and uniform mid from t = 0.1 to 0.4 and 0.6 to 0.8; uniform deep at all t"; "" for nowhere. least: bins of a range, if unsure."""
        places: dict[str, list[str]] = {}
        for target, own in groupby(self.ranges, key=lambda r: r.target):
            every = list(own)
            spans = _spans([r for r in every if r.says and r.denoising == direction], least)
            if spans == [(every[0].t_low, every[-1].t_high)]:
                places.setdefault("at all t", []).append(target)
            elif spans:
                places.setdefault("from t = " + " and ".join(f"{a:.3g} to {b:.3g}" for a, b in spans), []).append(target)
        return "; ".join(f"{_listed(targets)} {where}" for where, targets in places.items())

    @property
    def sentences(self) -> tuple[str, str]:
        """Where targets help, as far as gradients tell, and where they do not."""
        resolved = "resolved, above its control" if self.controls else "resolved (no control was measured)"
        fights = self._where(AGAINST, self.least)
        if helps := self._where(WITH, self.least):
            first = f"With denoising, {resolved}: {helps}."
        elif alone := self._where(WITH, 1):
            first = f"With denoising in single bins alone, which may be chance: {alone}."
        else:
            first = f"No target's gradient is {resolved} and with denoising, at any t."
        if fights:
            return first, f"Against denoising: {fights}. {BY_CONSTRUCTION}"
        silent = [target for target, own in groupby(self.ranges, key=lambda r: r.target) if not _spans([r for r in own if r.says], self.least)]
        if silent:
            return first, f"Of {_listed(silent)} nothing can be said: measure more images (--n-images), or another target."
        return first, "Against denoising: none, at any t."

    def to_frame(self) -> pd.DataFrame:
        """One row a range."""
        return pd.DataFrame([vars(r) for r in self.ranges], columns=COLUMNS)

    def __str__(self) -> str:
        rows = [("target", "t", "gradient", "denoising", "")]
        for r in self.ranges:
            notes = ", ".join(text for text, on in (("easy", r.easy), ("projector below a constant", r.underfit)) if on)
            rows.append((r.target, f"{r.t_low:.3g}-{r.t_high:.3g}", r.gradient, r.denoising or "-", notes))
        widths = [max(len(row[k]) for row in rows) + 2 for k in range(len(rows[0]))]
        lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.title, *(f"  {line}" for line in lines), *self.sentences, CAVEAT])


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _spans(ranges: list[Range], least: int) -> list[tuple[float, float]]:
    """Adjacent ranges joined: (t_low, t_high) of those with enough bins."""
    joined: list[list[Range]] = []
    for r in ranges:
        if joined and joined[-1][-1].t_high == r.t_low:
            joined[-1].append(r)
        else:
            joined.append([r])
    spoken = [part for part in joined if sum(r.bins for r in part) >= least or any(r.sure for r in part)]
    return [(part[0].t_low, part[-1].t_high) for part in spoken]


def _is_sure(cell: Mapping[str, Any], wider: float) -> bool:
    """Whether gradient and angle stay apart from 0 with intervals that are wider by a factor."""
    return all(abs(cell[x]) > wider * (cell[high] - cell[x]) for x, high in (("gsnr", "gsnr_high"), ("cos_denoise", "cos_high")))


def _said(cell: Mapping[str, Any], easy: set[tuple[Any, ...]]) -> tuple[str, str, bool, bool]:
    """gradient, denoising, easy, underfit of one cell."""
    floor_known = cell["floor"] == cell["floor"]
    gradient = UNRESOLVED if cell["below_detection"] else NO_FLOOR if not floor_known else ABOVE if cell["above_floor"] else AT_FLOOR
    denoising = WITH if cell["cos_low"] > 0 else AGAINST if cell["cos_high"] < 0 else UNCLEAR
    of_constant = (cell["target"], cell["control"], cell["projector"], cell["bin"]) in easy
    return gradient, denoising if gradient in (ABOVE, NO_FLOOR) else "", of_constant, bool(cell["underfit"])


def verdict(cells: pd.DataFrame, metrics: pd.DataFrame | None = None, *, group: str = "all") -> Verdict:
    """Of the table `alignment` of one checkpoint (`gsnr.table.read`), for one group of parameters.

    metrics: the table `alignment.metrics` beside it, for which targets are easy. Projectors of one kind: those fitted alike, where there are
    any, else the checkpoint's own. Raises ValueError for a table of another probe or of several checkpoints, and a group that is not there.
    """
    if set(cells["probe"]) != {"alignment"}:
        raise ValueError(f"a verdict is about a table of probe 'alignment', not {', '.join(sorted(set(cells['probe'])))}")
    runs = cells[["run", "checkpoint"]].drop_duplicates()
    if len(runs) > 1:
        raise ValueError(f"a verdict is about one checkpoint; the table has {len(runs)}: choose one by its columns 'run' and 'checkpoint'")
    if group not in set(cells["group"]):
        raise ValueError(f"group {group!r} is not in the table; choose from {', '.join(dict.fromkeys(cells['group']))}")
    here = cells[(cells["group"] == group) & (cells["control"] == "none")]
    if here.empty:
        raise ValueError("a verdict is about targets; the table has nothing but controls")
    kind = next(kind for kind in ("fit", "ckpt", "fresh", "none") if kind in set(here["projector"]))
    here = here[here["projector"].isin([kind, "none"])].sort_values("bin", kind="stable")
    easy: set[tuple[Any, ...]] = set()
    if metrics is not None:
        shares = metrics[(metrics["metric"] == "constant_share") & (metrics["value"] >= EASY)]
        easy = set(shares[["target", "control", "projector", "bin"]].itertuples(index=False, name=None))
    labels, ranges, n = cells.attrs.get("labels", {}), [], int(here["n"].iloc[0])
    wider = student_interval(0.0, 1.0, n, 1 - 0.05 / len(here))[1] / student_interval(0.0, 1.0, n, 0.95)[1]
    for target in dict.fromkeys(cells["target"]):
        rows = [{str(key): value for key, value in row.items()} for row in here[here["target"] == target].to_dict("records")]
        for said, own in groupby(rows, key=lambda row: _said(row, easy)):
            part = list(own)
            name = target_name(target, "none", part[0]["projector"], labels=labels)
            ranges.append(Range(name, part[0]["t_low"], part[-1]["t_high"], len(part), *said, any(_is_sure(row, wider) for row in part)))
    run, checkpoint = runs.iloc[0]
    title = f"verdict on {run}, checkpoint {checkpoint}: gradients of group {group!r}, n = {n}, 95 % intervals"
    return Verdict(title, tuple(ranges), 2 if here["bin"].nunique() >= FIVE_BINS else 1, bool(here["floor"].notna().any()))


def each(cells: pd.DataFrame, metrics: pd.DataFrame | None = None, group: str = "all") -> list[Verdict]:
    """`verdict` on every checkpoint of a table, in their order."""
    found = []
    for key, own in cells.groupby(["run", "checkpoint"], sort=False):
        of_run = metrics[(metrics["run"] == key[0]) & (metrics["checkpoint"] == key[1])] if metrics is not None else None
        found.append(verdict(own, of_run, group=group))
    return found


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The alignment table in a folder, and its metrics where there are some. Raises ValueError, naming the file, as `gsnr.table.read` does."""
    beside = folder / METRICS
    return table.read(folder / TABLE, "alignment"), table.read(beside) if beside.exists() else None


def of_tables(folder: Path, group: str = "all") -> list[Verdict]:
    """`each` on the alignment table in a folder. Raises ValueError, naming the table, where there is none, it is damaged or has no such group."""
    path, (cells, metrics) = folder / TABLE, read(folder)
    try:
        return each(cells, metrics, group)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
