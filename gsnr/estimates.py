"""Estimates of the gradient signal-to-noise ratio from sufficient statistics: pure functions of arrays, float64, no model.

Legend. g_i (i = 1..n) are independent per-sample gradients of one loss with respect to one group of parameters;
S = sum_i g_i; q_i = ||g_i||^2; r_i = g_i . S; q = sum_i q_i. Note that ||S||^2 = sum_i r_i.

    G-SNR = ||E g||^2 / tr Cov(g)                       (AHPA, Eq. 1)

Every loss here is one number per sample, never a batch mean, so the ratio is that of a single sample's gradient; a batch of B has B
times the ratio. No epsilon anywhere: 0/0 is NaN, and all ratios are invariant to the scale of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Scalars = float | Array
LEVEL = 0.95  # the level at which `below_detection` and `noise_scale` decide


def signal(sum_sq: Scalars, q: Scalars, n: int) -> Scalars:
    """U = (||S||^2 - q) / (n (n-1)): unbiased for ||E g||^2. May be negative; reported signed."""
    return (sum_sq - q) / (n * (n - 1))


def noise(sum_sq: Scalars, q: Scalars, n: int) -> Scalars:
    """V = (q - ||S||^2 / n) / (n-1): unbiased for tr Cov(g)."""
    return (q - sum_sq / n) / (n - 1)


def ratio(numerator: Scalars, denominator: Scalars) -> Scalars:
    """numerator / denominator with 0/0 = NaN and no warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


def plug_in(sum_sq: float, q: float, n: int) -> float:
    """AHPA Eq. 6, ||g_bar||^2 / [ sum ||g_i - g_bar||^2 / (n-1) ]. Biased: exceeds U / V by exactly 1/n."""
    return float(ratio(sum_sq / n**2, noise(sum_sq, q, n)))


def delete_one(q_n: Array, r_n: Array) -> tuple[Array, Array]:
    """(U_(-i), V_(-i)), each (n,): the estimates without sample i, from ||S - g_i||^2 = ||S||^2 - 2 r_i + q_i. Needs n >= 3."""
    m = len(q_n) - 1
    sum_sq_n = r_n.sum() - 2 * r_n + q_n
    rest_q_n = q_n.sum() - q_n
    return np.asarray(signal(sum_sq_n, rest_q_n, m)), np.asarray(noise(sum_sq_n, rest_q_n, m))


def jackknife_se(deleted_n: Array) -> float:
    """Standard error of a statistic from its delete-one values (Efron and Stein 1981; biased upwards, never down, in expectation)."""
    n = len(deleted_n)
    return float(np.sqrt((n - 1) / n * np.square(deleted_n - deleted_n.mean()).sum()))


def trace_cov_sq(gram_of_differences_KK: Array) -> float:
    """tr(Cov^2) from d_k = g_2k - g_2k+1 (independent, mean 0, covariance 2 Cov): mean over k != l of (d_k . d_l)^2 / 4. Unbiased.

    Input: the K x K Gram matrix of the differences, K >= 2; NaN for fewer.
    """
    k = len(gram_of_differences_KK)
    if k < 2:
        return float("nan")
    squares = np.square(gram_of_differences_KK)
    return float((squares.sum() - np.trace(squares)) / (4 * k * (k - 1)))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The gradient signal-to-noise ratio of one group of parameters, with what is needed to recompute it.

    q_n, r_n: float64 (n,): ||g_i||^2 and g_i . S. `r_n` is None where no second look at the samples was had (merged results,
    `interval=False`); then there is no interval. `sum_sq` = ||S||^2. `cov_sq` estimates tr(Cov^2), NaN where unknown.
    """

    group: str
    q_n: Array
    r_n: Array | None
    sum_sq: float
    cov_sq: float

    @property
    def n(self) -> int:
        """Number of independent samples."""
        return len(self.q_n)

    @property
    def n_zero(self) -> int:
        """How many samples have a gradient of exactly zero here (adaLN-Zero makes whole groups zero at initialisation)."""
        return int((self.q_n == 0).sum())

    @cached_property
    def signal(self) -> float:
        """U, unbiased for ||E g||^2; signed."""
        return float(signal(self.sum_sq, float(self.q_n.sum()), self.n))

    @cached_property
    def noise(self) -> float:
        """V, unbiased for tr Cov(g)."""
        return float(noise(self.sum_sq, float(self.q_n.sum()), self.n))

    @property
    def gsnr(self) -> float:
        """U / V: consistent, a ratio of two unbiased estimates; NaN where the gradients are exactly zero."""
        return float(ratio(self.signal, self.noise))

    @property
    def gsnr_plugin(self) -> float:
        """AHPA Eq. 6: gsnr + 1/n."""
        return plug_in(self.sum_sq, float(self.q_n.sum()), self.n)

    @property
    def noise_scale(self) -> float:
        """Simple noise scale V / U (McCandlish et al. 2018), the batch size at which signal equals noise; NaN below detection."""
        return float("nan") if self.below_detection else float(ratio(self.noise, self.signal))

    @property
    def detection_limit(self) -> float:
        """gsnr that a signal-free gradient would exceed 2.5 % of the time: 1.96 sqrt(2 tr(Cov^2) / (n (n-1))) / V.

        tr(Cov^2) is estimated from paired differences (`trace_cov_sq`); NaN where an engine saw fewer than four samples at once.
        """
        return float(1.96 * ratio(np.sqrt(2 * self.cov_sq / (self.n * (self.n - 1))), self.noise))

    @cached_property
    def se(self) -> float:
        """Delete-one jackknife standard error of gsnr. Raises ValueError where r_i is not known or n < 3."""
        if self.r_n is None:
            raise ValueError(f"group {self.group!r}: no interval without r_i = g_i . S; measure all samples in one call, interval=True")
        if self.n < 3:
            raise ValueError(f"group {self.group!r}: an interval needs at least 3 samples, not {self.n}")
        deleted_signal, deleted_noise = delete_one(self.q_n, self.r_n)
        return jackknife_se(np.asarray(ratio(deleted_signal, deleted_noise)))

    def ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided interval for gsnr: U/V +- Student's t (n - 1 degrees of freedom) times the jackknife standard error."""
        if not 0 < level < 1:
            raise ValueError(f"level {level}: must lie between 0 and 1, as 0.95 does")
        half = float(stats.t.ppf(0.5 + level / 2, self.n - 1)) * self.se
        return self.gsnr - half, self.gsnr + half

    @property
    def below_detection(self) -> bool:
        """True unless the lower end of the 95 % interval is above 0 (so also for NaN, and where there is no interval)."""
        return self.r_n is None or self.n < 3 or not self.ci(LEVEL)[0] > 0
