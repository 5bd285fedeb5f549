"""The ratio and its interval from whole gradients in float64, by their definitions: no code is shared with the library.

Gradients g_NP: N samples, P parameters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STUDENT = {7: 2.364624251592784, 23: 2.0686576104190406}  # 97.5 % by degrees of freedom, from a table


def ratio(g_NP: Array) -> float:
    """||E g||^2 / tr Cov(g): the mean product of two different samples over the sum of the parameters' variances."""
    gram, n = g_NP @ g_NP.T, len(g_NP)
    return float((gram.sum() - np.trace(gram)) / (n * (n - 1)) / g_NP.var(axis=0, ddof=1).sum())


def leave_one_out(g_NP: Array) -> Array:
    """(N,): the ratio of all samples but one."""
    return np.array([ratio(np.delete(g_NP, i, axis=0)) for i in range(len(g_NP))])


def jackknife_interval(value: float, deleted_N: Array) -> tuple[float, float]:
    """95 %: the value, and Student's t times the jackknife's standard error to either side (Efron and Stein 1981)."""
    n = len(deleted_N)
    half = STUDENT[n - 1] * np.sqrt((n - 1) / n * ((deleted_N - deleted_N.mean()) ** 2).sum())
    return float(value - half), float(value + half)
