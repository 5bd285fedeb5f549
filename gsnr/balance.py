"""Balance of two losses in one parameter space: is the auxiliary one still pulling, or held back by the main one? Pure functions of arrays, float64.

Legend: g_d mean gradient of the main loss (denoising), g_a of the auxiliary one (alignment), added with weight lambda; I unbiased <g_a, g_d>,
U unbiased ||g_a||^2, summed over bins of t:

    rho = I / P        P = lambda U           0: independent; > 0: both descend; -1: in equilibrium

At a joint stationary point g_d = -lambda g_a, so rho = -1 for a useful target and for a useless one: a cosine below 0 late in a training
says how far it is, and not that the target does harm. Variances are of the delete-one jackknife over samples, the same in all bins. The interval
of rho is Fieller's (1954), all numbers where P is not told from 0; the test of rho < -r is one-sided, of I + r P, which needs no ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.special import stdtr

from gsnr.comparison import Comparison
from gsnr.estimates import LEVEL, Array, ratio
from gsnr.intervals import student

LIMIT = 0.5  # |rho| from which on it counts; what lies wholly below -LIMIT is called balanced
HELPING, INDEPENDENT, OPPOSING, BALANCED, UNCLEAR, UNRESOLVED = "helping", "independent", "opposing", "balanced", "unclear", "not resolved"


@dataclass(frozen=True, kw_only=True)
class Balance:
    """inner: I; pull: P; their jackknife variances and covariance; n samples; cosine of the mean gradients, NaN where either is not positive."""

    inner: float
    pull: float
    inner_var: float
    pull_var: float
    covariance: float
    cosine: float
    n: int

    @property
    def rho(self) -> float:
        """I / P; NaN unless P is positive."""
        return float(ratio(self.inner, self.pull)) if self.pull > 0 else float("nan")

    def ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Fieller's interval of rho: those r for which I - r P is not told from 0. (-inf, inf) where P is not told from 0."""
        t_sq = student(self.n, level) ** 2
        square = self.pull**2 - t_sq * self.pull_var
        if not (square > 0 and self.pull > 0):
            return float("-inf"), float("inf")
        middle = self.inner * self.pull - t_sq * self.covariance
        half = np.sqrt(max(0.0, middle**2 - square * (self.inner**2 - t_sq * self.inner_var)))
        return float((middle - half) / square), float((middle + half) / square)

    def p_below(self, limit: float) -> float:
        """One-sided p-value against rho >= limit: small where I - limit P lies below 0 by more than its noise. 1 where nothing is known: without a
        weight there is no rho."""
        variance = self.inner_var - 2 * limit * self.covariance + limit**2 * self.pull_var
        if not (variance > 0 and self.pull_var > 0):
            return 1.0
        return float(stdtr(self.n - 1, (self.inner - limit * self.pull) / np.sqrt(variance)))

    @property
    def state(self) -> str:
        """One word, by the 95 % interval of rho."""
        low, high = self.ci()
        if not np.isfinite(low):
            return UNRESOLVED
        if low > 0:
            return HELPING
        if high < 0:
            return BALANCED if high < -LIMIT else OPPOSING
        return INDEPENDENT if low > -LIMIT and high < LIMIT else UNCLEAR

    def __str__(self) -> str:
        low, high = self.ci()
        return f"rho {self.rho:.2g} [{low:.2g}, {high:.2g}]" if np.isfinite(low) else f"rho {UNRESOLVED}"

    def line(self) -> dict[str, float | None]:
        """The fields, and rho with its interval, for a line of a log, from which `of_line` makes it again; what is not finite is null."""
        low, high = self.ci()
        every = asdict(self) | {"rho": self.rho, "rho_low": low, "rho_high": high}
        return {key: value if np.isfinite(value) else None for key, value in every.items()}

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Balance:
        """What `line` wrote. Raises KeyError for a line that lacks a field."""
        values: dict[str, Any] = {f.name: float("nan") if line[f.name] is None else line[f.name] for f in fields(cls)}
        return cls(**values)


def balance(comparisons: Sequence[Comparison], weights: Sequence[float]) -> Balance:
    """Of all bins together. comparisons: a is the auxiliary loss, b the main one; in every bin the same samples in the same order, or as many of
    other ones. weights: lambda of each bin. Raises ValueError for bins of several sizes, and for what has no interval."""
    sizes = {c.n for c in comparisons}
    if len(sizes) != 1 or len(weights) != len(comparisons):
        raise ValueError(f"a balance over bins needs as many samples in each, and a weight of each: {sorted(sizes)} samples, {len(weights)} weights")
    if not all(c.has_interval for c in comparisons):
        raise ValueError("a balance needs the jackknife: measure with intervals, at least 3 samples")
    n = sizes.pop()
    inner_n: Array = np.zeros(n)
    pull_n: Array = np.zeros(n)
    for c, weight in zip(comparisons, weights, strict=True):
        inner, signal, *_ = c.deleted()
        inner_n, pull_n = inner_n + inner, pull_n + weight * signal
    spread = np.cov(inner_n, pull_n, ddof=0) * (n - 1)
    size_a, size_b = (sum(getattr(c, which).signal for c in comparisons) for which in "ab")
    total = sum(c.inner for c in comparisons)
    return Balance(
        inner=total,
        pull=sum(weight * c.a.signal for c, weight in zip(comparisons, weights, strict=True)),
        inner_var=float(spread[0, 0]),
        pull_var=float(spread[1, 1]),
        covariance=float(spread[0, 1]),
        cosine=float(ratio(total, np.sqrt(size_a * size_b))) if size_a > 0 and size_b > 0 else float("nan"),
        n=n,
    )
