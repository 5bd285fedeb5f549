"""Recoverability gap (RARE, arXiv 2609.34732): how much of what the target adds is not there yet.

    N = mean over 3 bins of logSNR of clip(1 - R^2 / R*, 0, 1) ,      R* = max(0.02, the largest R^2 of any row and bin)

R^2 is that of a linear reader of the hidden state for what the target adds to the clean latent (`gsnr.probes.common.reading_rows`). A target whose
best R^2 is below 0.02 at every block is excluded, as by RARE: a random one would have the largest gap. A row's bins are those whose middle lies
in its range of t. The interval is the jackknife's over held-out images, R* with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gsnr.intervals import jackknife_interval
from gsnr.probes.common.bins import logsnr_edges
from gsnr.probes.common.case import UNDEFINED, Case, Interval, Row, on_all
from gsnr.probes.common.reading_rows import ADDED, readings, shares

LABEL = "recoverability gap"
SUMMARY = "the share of what the target adds to the latent that a linear reader does not find (RARE)"
PASSES = ("added", "readers")
BINS, TAU = 3, 0.02
Array = NDArray[np.float64]


def gap(r2_K: Array, best: float) -> float:
    """Mean over K bins. r2: of the row; best: R*."""
    return float(np.clip(1 - r2_K / best, 0, 1).mean())


def measure(case: Case) -> Mapping[str, Interval]:
    edges = [(float(low), float(high)) for low, high in pairwise(logsnr_edges(BINS))]
    found = {(row.label, k): _shares(case, row, *ends) for row in case.rows for k, ends in enumerate(edges)}
    r2 = {key: value for key, (value, _) in found.items()}
    left = {key: deleted for key, (_, deleted) in found.items()}
    known = [key for key, value in r2.items() if np.isfinite(value)]
    if not known:
        return on_all(case, lambda row: UNDEFINED)
    best = max(TAU, *(r2[key] for key in known))
    best_N = np.maximum(TAU, np.max([left[key] for key in known], axis=0))
    top = {row.thing: max([r2[other.label, k] for other in case.rows if other.thing == row.thing for k in range(BINS)]) for row in case.rows}

    def one(row: Row) -> Interval:
        bins = [k for k, (low, high) in enumerate(edges) if row.low <= (low + high) / 2 <= row.high]
        own = np.array([r2[row.label, k] for k in bins])
        if not len(own) or not np.isfinite(own).all() or top[row.thing] < TAU:
            return UNDEFINED
        left_KN = np.array([left[row.label, k] for k in bins])
        deleted_N = np.clip(1 - left_KN / best_N, 0, 1).mean(0)
        value = gap(own, best)
        return value, *jackknife_interval(value, deleted_N, 0.95)

    return on_all(case, one)


def _shares(case: Case, row: Row, low: float, high: float) -> tuple[float, Array]:
    of = readings(case, low, high).get(row.fork.control)
    return (np.nan, np.empty(0)) if of is None else shares(of, row.block, row.thing + ADDED)
