"""Readability: held-out R^2 of the target by a linear reader of the hidden state, token by token (`gsnr.probes.common.reading_rows`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gsnr.intervals import jackknife_interval
from gsnr.probes.common.case import UNDEFINED, Case, Interval, Row, on_all
from gsnr.probes.common.reading_rows import readings, shares

LABEL = "readability"
SUMMARY = "held-out R^2 of the target by a linear reader of the hidden state"
PASSES = ("added", "readers")


def measure(case: Case) -> Mapping[str, Interval]:
    def one(row: Row) -> Interval:
        of = readings(case, row.low, row.high).get(row.fork.control)
        value, left_N = (np.nan, np.empty(0)) if of is None else shares(of, row.block, row.thing)
        return (value, *jackknife_interval(value, left_N, 0.95)) if np.isfinite(value) else UNDEFINED

    return on_all(case, one)
