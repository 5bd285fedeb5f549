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

from gsnr.intervals import NORMAL_95, jackknife_se, student_interval

Array = NDArray[np.float64]
Scalars = float | Array
Count = int | NDArray[np.int64]
LEVEL = 0.95  # the level at which `below_detection` and `noise_scale` decide

# Below or above these the 95 % interval can stray from 93-97 % in simulation (docs/coverage.md); `Estimate.caution` says so.
MANY_SAMPLES = 128  # `se` trusts F from here on; with fewer, down to 90 % at a gsnr of 0.05 in a noisy direction
MANY_DIRECTIONS = 10  # effective dimension: with fewer, down to 85 % at a gsnr of 0.02 and 90 % at 0.05; 94 % or more at 0 and at 1
ROUNDED = 1e-10  # noise over mean ||g_i||^2 at and below which it may be the rounding of float32 gradients themselves: gsnr above 1e10
LARGE_SHARE = 0.3  # of the jackknife variance from one sample: at most 4 % of normal data exceed it, 80 % of lognormal norms with a signal


def signal(sum_sq: Scalars, q: Scalars, n: Count) -> Scalars:
    """U = (||S||^2 - q) / (n (n-1)): unbiased for ||E g||^2. May be negative; reported signed."""
    return (sum_sq - q) / (n * (n - 1))


def noise(sum_sq: Scalars, q: Scalars, n: Count) -> Scalars:
    """V = (q - ||S||^2 / n) / (n-1): unbiased for tr Cov(g)."""
    return (q - sum_sq / n) / (n - 1)


def ratio(numerator: Scalars, denominator: Scalars) -> Scalars:
    """numerator / denominator with 0/0 = NaN and no warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


def root(x: float) -> float:
    """Square root; NaN below 0, where an unbiased estimate of something positive came out negative."""
    return float(np.sqrt(x)) if x >= 0 else float("nan")


def plug_in(sum_sq: float, q: float, n: int) -> float:
    """AHPA Eq. 6, ||g_bar||^2 / [ sum ||g_i - g_bar||^2 / (n-1) ]. Biased: exceeds U / V by exactly 1/n."""
    return float(ratio(sum_sq / n**2, noise(sum_sq, q, n)))


def delete_one(q_n: Array, r_n: Array) -> tuple[Array, Array]:
    """(U_(-i), V_(-i)), each (n,): the estimates without sample i, from ||S - g_i||^2 = ||S||^2 - 2 r_i + q_i. Needs n >= 3."""
    m = len(q_n) - 1
    sum_sq_n = r_n.sum() - 2 * r_n + q_n
    rest_q_n = q_n.sum() - q_n
    return np.asarray(signal(sum_sq_n, rest_q_n, m)), np.asarray(noise(sum_sq_n, rest_q_n, m))


def variance_of_ratio(jackknife: Scalars, pairs: Scalars, n: Count) -> Scalars:
    """Variance of gsnr: the delete-one jackknife's J, which counts F twice (U averages over pairs), put right where F is known.

    It is never less than F (`Estimate.pair_variance`), nor than J / 2; with n below MANY_SAMPLES, where F is poorly known, never less than J."""
    once = np.where(np.asarray(n) >= MANY_SAMPLES, jackknife - pairs, jackknife)
    return np.where(np.asarray(pairs) > 0, np.maximum(np.maximum(once, pairs), jackknife / 2), jackknife)


def trace_cov_sq(q_n: Array, r_n: Array, e_n: Array, sign_n: Array) -> float:
    """tr(Cov^2), unbiased for any distribution of gradients (derived here), so it may come out negative; NaN for fewer than six samples
    and where all signs are one.

    With signs s_i = +-1 that do not depend on the gradients, D = sum_i s_i g_i, and e_i = g_i . D (NaN where not taken). Let m = mu^T Cov mu,
    c = tr(Cov^2), and let w_i = s_i - mean(s) be weights that sum to 0, so that mu drops out of sum_i w_i g_i = D - mean(s) S. The products

        f_i = e_i - mean(s) r_i - w_i q_i = g_i . sum_{j != i} w_j g_j

    of two samples of one sign, w, differ by f_i - f_k = (g_i - g_k) . sum_{j != i,k} w_j g_j: their product with each other cancels. Hence

        Var_i(r_i - q_i)           = (n-2)^2 m + (n-2) c
        Var_i(f_i | w_i = w)       = (2 w)^2 m + (sum_j w_j^2 - 2 w^2) c

    in expectation: two linear equations for m and c. D needs no sample's gradient to be kept, unlike the Gram matrix. Averaged over all signs
    it is the U-statistic of tr(Cov^2), the one unbiased estimate that does not depend on the order. One choice of signs spreads about that by
    a relative variance of 2 tr(Cov^4) / tr(Cov^2)^2, since D is one direction, and 2 / (number of e_i), near enough.
    """
    n = len(q_n)
    mean = sign_n.mean() if n else 0.0
    f_n = e_n - mean * r_n - (sign_n - mean) * q_n
    squares = degrees = of_m = of_c = 0.0
    for s in (-1.0, 1.0):
        f = f_n[(sign_n == s) & ~np.isnan(e_n)]
        if len(f) > 1:
            w = s - mean
            squares += np.square(f - f.mean()).sum()
            degrees += len(f) - 1
            of_m += (len(f) - 1) * 4 * w**2
            of_c += (len(f) - 1) * (n * (1 - mean**2) - 2 * w**2)
    if n < 6 or not degrees or abs(mean) == 1:
        return float("nan")
    about_s = np.var(r_n - q_n, ddof=1)
    squares, of_m, of_c = squares / degrees, of_m / degrees, of_c / degrees
    return float(((n - 2) ** 2 * squares - of_m * about_s) / ((n - 2) ** 2 * of_c - of_m * (n - 2)))


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate:
    """The gradient signal-to-noise ratio of one group of parameters, with what is needed to recompute it.

    q_n, r_n: float64 (n,): ||g_i||^2 and g_i . S. `r_n` is None where no second look at the samples was had (merged results,
    `interval=False`); then there is no interval. `sum_sq` = ||S||^2. `cov_sq` estimates tr(Cov^2) by `trace_cov_sq`, NaN where unknown.

    Several draws (of t, noise) per sample: g_i is the mean over the K = `draws` of sample i, n counts samples, and
    `draw_q_n` = sum_k ||g_ik||^2 splits the noise into a part between samples and one within them.
    """

    group: str
    q_n: Array
    r_n: Array | None
    sum_sq: float
    cov_sq: float = float("nan")
    draws: int = 1
    draw_q_n: Array | None = None

    def __repr__(self) -> str:
        interval = "no interval"
        if self.has_interval:
            low, high = self.ci()
            interval = f"[{low:.3g}, {high:.3g}]"
        return f"Estimate({self.group!r}, n={self.n}, gsnr={self.gsnr:.3g} {interval})"

    @property
    def has_interval(self) -> bool:
        """Whether `ci` has one to give: r_i is known, and n >= 3."""
        return self.r_n is not None and self.n >= 3

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
    def noise_within(self) -> float:
        """Noise that one more draw of the same sample averages away: tr E Cov(g_ik | i), unbiased (one-way analysis of variance).
        NaN for a single draw."""
        if self.draw_q_n is None or self.draws < 2:
            return float("nan")
        return float((self.draw_q_n.sum() - self.draws * self.q_n.sum()) / (self.n * (self.draws - 1)))

    @property
    def noise_between(self) -> float:
        """Noise that remains however many draws a sample has: tr Cov(E[g_ik | i]) = V - within / K, unbiased; signed. NaN for a single draw."""
        return self.noise - self.noise_within / self.draws

    def scaled(self, batch: int) -> float:
        """batch * gsnr: the ratio of the mean gradient over a batch of that size."""
        return batch * self.gsnr

    def decibel(self, batch: int = 1) -> float:
        """10 log10(batch * gsnr); NaN where gsnr <= 0."""
        return float(10 * np.log10(self.scaled(batch))) if self.gsnr > 0 else float("nan")

    @property
    def effective_dimension(self) -> float:
        """(tr Cov)^2 / tr(Cov^2): how many directions the noise fills; NaN where tr(Cov^2) is not known."""
        return float(ratio(self.noise**2, self.cov_sq)) if self.cov_sq > 0 else float("nan")

    @property
    def detection_limit(self) -> float:
        """gsnr that a signal-free gradient would exceed 2.5 % of the time: 1.96 sqrt(2 tr(Cov^2) / (n (n-1))) / V; NaN without tr(Cov^2)."""
        return NORMAL_95 * root(self.pair_variance)

    @cached_property
    def deleted_gsnr(self) -> Array:
        """(n,): gsnr without sample i. Raises ValueError where r_i is not known or n < 3."""
        if self.r_n is None:
            raise ValueError(f"group {self.group!r}: no interval without r_i = g_i . S; measure all samples in one call, interval=True")
        if self.n < 3:
            raise ValueError(f"group {self.group!r}: an interval needs at least 3 samples, not {self.n}")
        return np.asarray(ratio(*delete_one(self.q_n, self.r_n)))

    @property
    def pair_variance(self) -> float:
        """F = 2 tr(Cov^2) / (n (n-1)) / V^2: the part of gsnr's variance that pairs of samples make, all of it where there is no signal."""
        return float(ratio(2 * self.cov_sq / (self.n * (self.n - 1)), self.noise**2))

    @cached_property
    def se(self) -> float:
        """Standard error of gsnr: root of `variance_of_ratio`. Raises ValueError where r_i is not known or n < 3."""
        return root(float(variance_of_ratio(jackknife_se(self.deleted_gsnr) ** 2, self.pair_variance, self.n)))

    def ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided interval for gsnr: Student's t times `se`. Raises ValueError where r_i is not known, n < 3, or the level is outside (0, 1)."""
        return student_interval(self.gsnr, self.se, self.n, level)

    @property
    def below_detection(self) -> bool:
        """True unless the lower end of the 95 % interval is above 0 (so also for NaN, and where there is no interval)."""
        return not (self.has_interval and self.ci(LEVEL)[0] > 0)

    @property
    def largest_share(self) -> float:
        """Of the jackknife variance, the part that one sample makes alone. Raises ValueError where r_i is not known or n < 3."""
        squares = np.square(self.deleted_gsnr - self.deleted_gsnr.mean())
        return float(ratio(squares.max(), squares.sum()))

    @property
    def caution(self) -> tuple[str, ...]:
        """Why the interval may be off its nominal level, as far as the data tell; empty where nothing speaks against it.

        What is not known (effective dimension NaN, no interval) is no reason. Not seen: a tail too thin to have been sampled, and whether
        a signal below 0.05 lies in a noisy direction, where it is understated.
        """
        reasons = []
        if self.n < MANY_SAMPLES:
            reasons.append(f"n = {self.n}: fewer than {MANY_SAMPLES} samples")
        if self.noise <= ROUNDED * self.q_n.mean() and self.q_n.any():
            reasons.append(f"noise is at most {ROUNDED:g} of the square norms: the rounding of float32 gradients alone can make as much")
        if self.effective_dimension < MANY_DIRECTIONS:
            reasons.append(f"effective dimension {self.effective_dimension:.1f}: below {MANY_DIRECTIONS}")
        if self.has_interval:
            share = self.largest_share
            if share > LARGE_SHARE:
                reasons.append(f"one sample makes {share:.0%} of the jackknife variance: heavy tails")
            if self.ci(LEVEL)[1] < 0:
                reasons.append(f"the {LEVEL:.0%} interval lies below 0, where no gsnr can be")
        return tuple(reasons)
