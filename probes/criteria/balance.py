"""Balance of the two gradients, rho = I / (lambda U): I unbiased <g_a, g_d>, U unbiased ||g_a||^2, lambda the row's weight.

0: independent; above 0: both descend; -1: in equilibrium. At a joint optimum it is -1 for any target. The interval is the jackknife's of the ratio.
"""

from __future__ import annotations

from collections.abc import Mapping

import gsnr
from gsnr.estimates import LEVEL, ratio
from gsnr.intervals import jackknife_interval
from gsnr.probes.common.case import NAN, UNDEFINED, Case, Interval, on_all
from gsnr.probes.common.row_gradients import comparisons

LABEL = "balance rho"
SUMMARY = "rho = <g_a, g_d> / (lambda ||g_a||^2): -1 in equilibrium, 0 independent, above 0 both descend"
PASSES = ("projectors", "gradients")


def rho(c: gsnr.Comparison, weight: float) -> Interval:
    """NaN where the alignment's gradient is not told from 0."""
    if not c.has_interval or not c.a.signal > 0 or not weight:
        return UNDEFINED
    inner_n, signal_n, *_ = c.deleted()
    value = c.inner / (weight * c.a.signal)
    if not (signal_n > 0).all():
        return value, NAN, NAN
    return value, *jackknife_interval(value, ratio(inner_n, weight * signal_n), LEVEL)  # type: ignore[arg-type]


def measure(case: Case) -> Mapping[str, Interval]:
    found = comparisons(case)
    return on_all(case, lambda row: rho(found[row.label], row.weight) if row.label in found else UNDEFINED)
