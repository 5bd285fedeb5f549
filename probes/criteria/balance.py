"""Balance of the two gradients, rho = I / (lambda U): I unbiased <g_a, g_d>, U unbiased ||g_a||^2, lambda the row's weight (`gsnr.balance`).

0: independent; above 0: both descend; -1: in equilibrium. At a joint optimum it is -1 for any target. The interval is Fieller's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import gsnr
from gsnr.balance import balance
from gsnr.probes.common.case import NAN, UNDEFINED, Case, Interval, on_all
from gsnr.probes.common.row_gradients import comparisons

LABEL = "balance rho"
SUMMARY = "rho = <g_a, g_d> / (lambda ||g_a||^2): -1 in equilibrium, 0 independent, above 0 both descend"
PASSES = ("projectors", "gradients")


def rho(c: gsnr.Comparison, weight: float) -> Interval:
    """Without an interval where the alignment's gradient is not told from 0."""
    if not c.has_interval or not c.a.signal > 0 or not weight:
        return UNDEFINED
    found = balance([c], [weight])
    low, high = found.ci()
    return (found.rho, low, high) if np.isfinite(low) else (found.rho, NAN, NAN)


def measure(case: Case) -> Mapping[str, Interval]:
    found = comparisons(case)
    return on_all(case, lambda row: rho(found[row.label], row.weight) if row.label in found else UNDEFINED)
