"""Two losses on identical samples: do their mean gradients point the same way? Pure functions of arrays, float64, no model.

Legend: a_i, b_i (i = 1..n) gradients of the two losses at sample i; A = sum a_i, B = sum b_i; x_i = a_i . b_i.

    I = (A . B - sum_i x_i) / (n (n-1))         unbiased for <E a, E b>: no sample meets itself
    cosine = I / sqrt(U_a U_b)                  each product unbiased; a ratio of noisy norms may leave [-1, 1] and is not clipped
    constructive G-SNR of a with respect to b = sign(I) (I^2 - X) / (U_b V_a)

The last is the part of a's signal that also descends b (the "constructive optimisation subspace" of AHPA, App. E.1, as a number), sign(cos) cos^2
gsnr_a. Without X, I^2 / U_b exceeds <E a, E b>^2 / ||E b||^2 by X / U_b in expectation, to first order in 1/n (delta method), where

    X = Var(I - beta U_b)    beta = I / U_b

is Var I where b is well resolved, and 0 for b proportional to a, since I and U_b then err together. X is estimated by the jackknife, which
is a little too large where b is hardly resolved. Within sqrt(X) of 0, where the sign of I says little, sqrt(X) |I| is taken off instead, which keeps
the estimate continuous in I; there it may have the other sign than I, as U may be negative. Intervals are delete-one jackknife with Student's t,
which pairs the two losses sample by sample; the constructive G-SNR's is not symmetric about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gsnr.estimates import LEVEL, Array, Estimate, Scalars, delete_one, ratio
from gsnr.intervals import jackknife_interval, jackknife_se


def mean_product(sum_ab: Scalars, x: Scalars, n: int) -> Scalars:
    """I, from A . B and sum_i x_i."""
    return (sum_ab - x) / (n * (n - 1))


def cosine(inner: Scalars, size_a: Scalars, size_b: Scalars) -> Scalars:
    """I / sqrt(U_a U_b), or with V_a in place of U_a the signed root of the constructive G-SNR; NaN unless both are positive."""
    positive = np.where((np.asarray(size_a) > 0) & (np.asarray(size_b) > 0), np.multiply(size_a, size_b), np.nan)
    return ratio(inner, np.sqrt(positive))


def constructive(inner: float, excess: float, noise_a: float, signal_b: float) -> float:
    """sign(I) (I^2 - min(X, sqrt(X) |I|)) / (U_b V_a); NaN unless U_b is positive: without a direction to descend there is nothing constructive."""
    square = inner**2 - min(excess, np.sqrt(excess) * abs(inner))
    return float(ratio(np.sign(inner) * square, signal_b * noise_a)) if signal_b > 0 else float("nan")


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Losses a and b, one group of parameters. a_sum_b_n: a_i . B; b_sum_a_n: b_i . A; all float64 (n,)."""

    a: Estimate
    b: Estimate
    x_n: Array
    a_sum_b_n: Array
    b_sum_a_n: Array
    sum_ab: float

    def __repr__(self) -> str:
        return f"Comparison(cosine={self.cosine:.3g}, constructive={self.constructive:.3g}, a={self.a!r}, b={self.b!r})"

    @property
    def n(self) -> int:
        return self.a.n

    @property
    def has_interval(self) -> bool:
        """Whether the intervals have one to give: both r_i are known, and n >= 3."""
        return self.a.has_interval and self.b.has_interval

    @cached_property
    def inner(self) -> float:
        """I: unbiased for <E a, E b>; signed."""
        return float(mean_product(self.sum_ab, float(self.x_n.sum()), self.n))

    @cached_property
    def excess(self) -> float:
        """X: what I^2 / U_b is too large by, times U_b; the jackknife variance of I - (I / U_b) U_b. Raises ValueError for n < 3."""
        inner, _, _, signal_b, _ = self.deleted()
        return jackknife_se(inner - ratio(self.inner, self.b.signal) * signal_b) ** 2

    @property
    def cosine(self) -> float:
        """Of the two mean gradients. May leave [-1, 1] where they are not resolved; NaN where a signal is not positive."""
        return float(cosine(self.inner, self.a.signal, self.b.signal))

    @property
    def constructive(self) -> float:
        """G-SNR of a that also descends b: sign(cos) cos^2 gsnr_a, corrected for what squaring adds. NaN where there is no interval."""
        return constructive(self.inner, self.excess, self.a.noise, self.b.signal) if self.has_interval else float("nan")

    @property
    def mean_sample_cosine(self) -> float:
        """Mean over samples of cos(a_i, b_i); samples where either gradient is zero are left out."""
        each = ratio(self.x_n, np.sqrt(self.a.q_n * self.b.q_n))
        known = np.asarray(each)[np.isfinite(each)]
        return float(known.mean()) if len(known) else float("nan")

    @property
    def gsnr_difference(self) -> float:
        """gsnr_a - gsnr_b, on identical samples."""
        return self.a.gsnr - self.b.gsnr

    @property
    def resolved(self) -> bool:
        """True where both mean gradients stand above the noise (95 %), so that an angle between them means something."""
        return not (self.a.below_detection or self.b.below_detection)

    @property
    def caution(self) -> tuple[str, ...]:
        """Why the intervals may be off their nominal level: the cautions of either loss."""
        return tuple(dict.fromkeys((*self.a.caution, *self.b.caution)))

    def deleted(self) -> tuple[Array, Array, Array, Array, Array]:
        """Delete-one values of I, U_a, V_a, U_b, V_b, each (n,)."""
        assert self.a.r_n is not None and self.b.r_n is not None
        sum_ab = self.sum_ab - self.a_sum_b_n - self.b_sum_a_n + self.x_n
        inner = mean_product(sum_ab, self.x_n.sum() - self.x_n, self.n - 1)
        return np.asarray(inner), *delete_one(self.a.q_n, self.a.r_n), *delete_one(self.b.q_n, self.b.r_n)

    def inner_ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of I."""
        return jackknife_interval(self.inner, self.deleted()[0], level)

    def cosine_ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of the cosine; NaN where some sample left out makes a signal negative. Raises ValueError for n < 3."""
        inner, signal_a, _, signal_b, _ = self.deleted()
        return jackknife_interval(self.cosine, np.asarray(cosine(inner, signal_a, signal_b)), level)

    def constructive_ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of the constructive G-SNR: that of its signed root, squared with its sign, since the root is nearly normal even near 0."""
        inner, _, noise_a, signal_b, _ = self.deleted()
        root, root_n = cosine(self.inner, self.a.noise, self.b.signal), cosine(inner, noise_a, signal_b)
        low, high = jackknife_interval(float(root), np.asarray(root_n), level)
        return low * abs(low), high * abs(high)

    def gsnr_difference_ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of gsnr_a - gsnr_b: paired, so it is narrower than two intervals where the losses' gradients go together."""
        return difference_ci(self.a, self.b, level)


def difference_ci(a: Estimate, b: Estimate, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a.gsnr - b.gsnr for two estimates on the same samples in the same order (two targets, two checkpoints), by the paired jackknife.

    Raises ValueError where the numbers of samples differ, r_i is not known or n < 3.
    """
    if a.n != b.n:
        raise ValueError(f"a paired difference needs the same samples: {a.n} and {b.n}")
    return jackknife_interval(a.gsnr - b.gsnr, a.deleted_gsnr - b.deleted_gsnr, level)
