"""The factors and formulas of intervals, for the whole package. Importable without torch."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

# Of a normal law, two-sided at 95 %, rounded as it is quoted (1.959964 is closer). It must stay: tr(Cov^2) is read off again from
# detection limits in tables on disk (`gsnr.table.estimate_again`), and printed intervals were made with it.
NORMAL_95 = 1.96


@cache
def student(n: int, level: float) -> float:
    """Student's t, two-sided at `level`, with n - 1 degrees of freedom. Raises ValueError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level {level}: must lie between 0 and 1, as 0.95 does")
    return float(stdtrit(n - 1, 0.5 + level / 2))


def student_interval(value: float, se: float, n: int, level: float) -> tuple[float, float]:
    """value +- `student` times a standard error. Raises ValueError for a level outside (0, 1)."""
    half = student(n, level) * se
    return value - half, value + half


def jackknife_se(deleted_n: NDArray[np.float64]) -> float:
    """Standard error of a statistic from its delete-one values (Efron and Stein 1981; biased upwards, never down, in expectation)."""
    n = len(deleted_n)
    return float(np.sqrt((n - 1) / n * np.square(deleted_n - deleted_n.mean()).sum()))


def jackknife_interval(value: float, deleted_n: NDArray[np.float64], level: float) -> tuple[float, float]:
    """`student_interval` with the jackknife's standard error."""
    return student_interval(value, jackknife_se(deleted_n), len(deleted_n), level)
