"""The factors and formulas of intervals, for the whole package. Importable without torch."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtr, stdtrit

# Of a normal law, two-sided at 95 %, rounded as it is quoted (1.959964 is closer). It must stay: tr(Cov^2) is read off again from
# detection limits in tables on disk (`gsnr.table.estimate_again`), and printed intervals were made with it.
NORMAL_95 = 1.96
POINTS = 2**14  # quantiles that a mean over a chi-square law is taken of


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


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927). It holds the proportion, whose rounding at 0 and 1 may be another."""
    z = NORMAL_95
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(min(share, (middle - half) / (1 + z * z / n))), float(max(share, (middle + half) / (1 + z * z / n)))


def detectable_effect(sd: float, n: int, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true mean of n normal values with standard deviation `sd` that a two-sided t test at `level` finds with probability `power`
    (Cohen 1988; the noncentral t law, as a mean over quantiles of its chi-square, to 1e-3). NaN for fewer than two values or an unknown spread."""
    if n < 2 or not sd >= 0:
        return float("nan")
    from scipy.optimize import brentq  # a quarter of a second to import, for every command

    points = (np.arange(POINTS) + 0.5) / POINTS
    threshold_q = student(n, level) * np.sqrt(chdtri(n - 1, points) / (n - 1))

    def lacking(shift: float) -> float:
        return float((ndtr(shift - threshold_q) + ndtr(-shift - threshold_q)).mean()) - power

    return float(brentq(lacking, 0, threshold_q.max() + 10)) * sd / float(np.sqrt(n))
