"""What the rows of a table must be, as data: ranges, order, doubled rows, gaps, and columns that follow from others.

A table is written, and believed when it is read, where it holds to this, and refused with its first fault otherwise: row (counted from 0) and
column. NaN stands only where the library itself writes it: 0/0 where gradients are exactly zero, no interval, no floor, no bin of t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

Columns = dict[str, str]  # name -> dtype
RELATIVE = 1e-6  # of columns that follow from others: they were computed from the same numbers, up to rounding
SLACK = 1e-9  # of an interval's larger end, by which a value may lie beyond an end, and the ends be out of order: rounding


@dataclass(frozen=True)
class Range:
    """Values of a number's column; NaN and infinities only where it says so."""

    low: float = -np.inf
    high: float = np.inf
    nan: bool = False
    inf: bool = False


ANY, POSITIVE, COUNT, UNKNOWN, QUOTIENT = Range(), Range(low=0), Range(low=1), Range(nan=True), Range(nan=True, inf=True)
SHARE = Range(0, 1)
T, NO_T = Range(0, 1), Range(0, 1, nan=True)  # NO_T: rows that belong to no bin of t
LOGSNR = dict.fromkeys(("logsnr_low", "logsnr_high"), QUOTIENT)
RANGES: dict[str, dict[str, Range]] = {  # other columns of numbers: ANY
    "cells": LOGSNR
    | dict.fromkeys(("step", "bin"), POSITIVE)
    | dict.fromkeys(("batch_ref", "draws"), COUNT)
    | dict.fromkeys(("t_low", "t_high"), T)
    | dict.fromkeys(("gsnr", "gsnr_plugin", "gsnr_batch", "gsnr_batch_db", "noise_scale", "gsnr_constructive"), QUOTIENT)
    | dict.fromkeys(("gsnr_low", "gsnr_high", "cos_denoise", "cos_low", "cos_high", "floor", "floor_low", "floor_high"), UNKNOWN)
    | {"n": Range(low=2), "detection_limit": Range(low=0, nan=True)},
    "metrics": LOGSNR
    | dict.fromkeys(("t_low", "t_high"), NO_T)
    | dict.fromkeys(("value", "low", "high"), UNKNOWN)
    | {"step": POSITIVE, "bin": Range(low=-1)},
    "samples": dict.fromkeys(("bin", "q"), POSITIVE) | {"t": T},
    "maps": dict.fromkeys(("image_id", "y", "x"), POSITIVE) | dict.fromkeys(("red", "green", "blue"), SHARE),
}
ENDS = (  # each in order, and known together
    ("t_low", "t_high"),
    ("logsnr_low", "logsnr_high"),
    ("gsnr_low", "gsnr_high"),
    ("cos_low", "cos_high"),
    ("floor_low", "floor_high"),
    ("low", "high"),
)
WITHIN = {"gsnr": ("gsnr_low", "gsnr_high"), "cos_denoise": ("cos_low", "cos_high"), "floor": ("floor_low", "floor_high"), "value": ("low", "high")}
WHICH = ("run", "checkpoint", "vae", "target", "control", "projector", "group")
KEYS = {  # no two rows are alike in all of these
    "cells": (*WHICH, "step", "probe", "bin"),
    "metrics": (*WHICH, "step", "probe", "metric", "bin"),
    "samples": (*WHICH, "bin", "image_id"),
    "maps": ("run", "checkpoint", "vae", "group", "image_id", "y", "x"),
}


def _quotient(a: Any, b: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(a, b)


def _decibel(x: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x > 0, 10 * np.log10(x), np.nan)


FOLLOWS: dict[str, dict[str, tuple[str, Callable[[pd.DataFrame], Any]]]] = {  # column -> how it is made from others, in words and as a formula
    "cells": {
        "gsnr": ("signal / noise", lambda f: _quotient(f["signal"], f["noise"])),
        "gsnr_plugin": ("gsnr + 1 / n", lambda f: f["gsnr"] + 1 / f["n"]),
        "gsnr_batch": ("batch_ref x gsnr", lambda f: f["batch_ref"] * f["gsnr"]),
        "gsnr_batch_db": ("10 log10 gsnr_batch", lambda f: _decibel(f["gsnr_batch"])),
        "below_detection": ("not gsnr_low > 0", lambda f: ~(f["gsnr_low"] > 0)),
        "noise_scale": (
            "noise / signal, if detected",
            lambda f: np.where(f["below_detection"], np.nan, _quotient(f["noise"], f["signal"])),
        ),
    }
}


class Fault(ValueError):
    """Of a table: row, column, value, and what is wrong with it. Whoever has it checked names the file."""


def check(kind: str, frame: pd.DataFrame, columns: Columns, bins: int | None) -> None:
    """Raises Fault for the first fault of a table. bins: how many its settings say; None where they do not."""
    table = _Table(frame)
    _check_values(table, RANGES[kind], columns)
    _check_intervals(table)
    for column, (words, formula) in FOLLOWS.get(kind, {}).items():
        made = np.asarray(formula(frame), dtype=float)
        alike = np.isclose(frame[column].to_numpy(dtype=float), made, rtol=RELATIVE, atol=1e-12, equal_nan=True)
        table.refuse(column, ~alike, f"but {words} is", made)
    _check_keys(table, kind, bins)


@dataclass(frozen=True)
class _Table:
    frame: pd.DataFrame

    def refuse(self, column: str, bad: Any, why: str, other: Any = None) -> None:
        """Raises Fault for the first row that is bad. other: a column of numbers, of which the message ends with that row's."""
        bad = np.asarray(bad, dtype=bool)
        if bad.any():
            row = int(bad.argmax())
            value = self.frame[column].iloc[row]
            said = f"{value:.6g}" if isinstance(value, Real) else str(value)
            ending = "" if other is None else f" {float(np.asarray(other)[row]):.6g}"
            raise Fault(f"row {row}, column {column!r}: {said}, {why}{ending}")


def _check_values(table: _Table, ranges: dict[str, Range], columns: Columns) -> None:
    """Nulls, NaN, infinities and ranges."""
    for column, dtype in columns.items():
        values = table.frame[column]
        if dtype != "float64":
            table.refuse(column, values.isna(), "where a value is needed")
        if dtype in ("string", "bool"):
            continue
        has, number = ranges.get(column, ANY), values.to_numpy(dtype=float)
        table.refuse(column, np.isnan(number) & (not has.nan), "where a number is needed")
        table.refuse(column, np.isinf(number) & (not has.inf), "not finite")
        table.refuse(column, number < has.low, f"less than {has.low:g}")
        table.refuse(column, number > has.high, f"more than {has.high:g}")


def _above(frame: pd.DataFrame, this: str, that: str, ends: tuple[str, str]) -> Any:
    """Where one column is above another by more than rounding makes of these ends."""
    sizes = frame[list(ends)].to_numpy(dtype=float)
    slack = SLACK * np.abs(np.where(np.isfinite(sizes), sizes, 0)).max(1)
    return frame[this].to_numpy(dtype=float) > frame[that].to_numpy(dtype=float) + slack


def _check_intervals(table: _Table) -> None:
    """Ends in order and known together, values within their own interval."""
    frame = table.frame
    for low, high in ENDS:
        if low in frame and high in frame:
            table.refuse(low, frame[low].isna() != frame[high].isna(), f"but {high} is", frame[high])
            table.refuse(low, _above(frame, low, high, (low, high)), f"above {high} =", frame[high])
    for column, (low, high) in WITHIN.items():
        if column in frame and low in frame and high in frame:
            table.refuse(column, _above(frame, low, column, (low, high)), f"below {low} =", frame[low])
            table.refuse(column, _above(frame, column, high, (low, high)), f"above {high} =", frame[high])


def _check_keys(table: _Table, kind: str, bins: int | None) -> None:
    """Rows that are there twice, bins that are missing, and bins whose edges are not the same for all."""
    frame, keys = table.frame, list(KEYS[kind])
    table.refuse(keys[-1], frame.duplicated(keys), f"the second row of the same {', '.join(keys)}")
    if kind not in ("cells", "metrics"):
        return
    series = frame.groupby(keys[:-1], sort=False)["bin"]
    first, last, count = (series.transform(how) for how in ("min", "max", "count"))
    if kind == "cells":
        first, last = first * 0, first * 0 + (frame["bin"].max() if bins is None else bins - 1)
    table.refuse("bin", count != last - first + 1, "of a target and group whose bins are not all there; they should be as many as", last - first + 1)
    if kind == "cells":
        for edge in ("t_low", "t_high"):
            of_bin = frame.groupby(["run", "checkpoint", "bin"], sort=False)[edge].transform("first")
            table.refuse(edge, frame[edge] != of_bin, "but in another row of its bin", of_bin)
