"""Two losses on identical samples: do their mean gradients point the same way? Pure functions of arrays, float64, no model.

Legend: a_i, b_i (i = 1..n) gradients of the two losses at sample i; A = sum a_i, B = sum b_i; x_i = a_i . b_i.

    I = (A . B - sum_i x_i) / (n (n-1))         unbiased for <E a, E b>: no sample meets itself
    cosine = I / sqrt(U_a U_b)                  each product unbiased; a ratio of noisy norms may leave [-1, 1] and is not clipped
    constructive G-SNR of a with respect to b = sign(cos) cos^2 gsnr_a = sign(I) I^2 / (U_b V_a)

The last is the part of a's signal that also descends b (the "constructive optimisation subspace" of AHPA, App. E.1, as a number). Intervals are
delete-one jackknife with Student's t, which pairs the two losses sample by sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gsnr.estimates import LEVEL, Array, Estimate, Scalars, delete_one, ratio
from gsnr.intervals import jackknife_interval


def mean_product(sum_ab: Scalars, x: Scalars, n: int) -> Scalars:
    """I, from A . B and sum_i x_i."""
    return (sum_ab - x) / (n * (n - 1))


def cosine(inner: Scalars, signal_a: Scalars, signal_b: Scalars) -> Scalars:
    """I / sqrt(U_a U_b); NaN unless both signals are positive."""
    positive = np.where((np.asarray(signal_a) > 0) & (np.asarray(signal_b) > 0), np.multiply(signal_a, signal_b), np.nan)
    return ratio(inner, np.sqrt(positive))


def constructive(inner: Scalars, noise_a: Scalars, signal_b: Scalars) -> Scalars:
    """sign(I) I^2 / (U_b V_a); NaN unless U_b is positive: without a direction to descend there is nothing constructive."""
    return ratio(np.sign(inner) * np.square(inner), np.where(np.asarray(signal_b) > 0, signal_b, np.nan) * noise_a)


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

    @property
    def cosine(self) -> float:
        """Of the two mean gradients. May leave [-1, 1] where they are not resolved; NaN where a signal is not positive."""
        return float(cosine(self.inner, self.a.signal, self.b.signal))

    @property
    def constructive(self) -> float:
        """G-SNR of a that also descends b: sign(cos) cos^2 gsnr_a."""
        return float(constructive(self.inner, self.a.noise, self.b.signal))

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

    def _deleted(self) -> tuple[Array, Array, Array, Array, Array]:
        """Delete-one values of I, U_a, V_a, U_b, V_b, each (n,)."""
        assert self.a.r_n is not None and self.b.r_n is not None
        sum_ab = self.sum_ab - self.a_sum_b_n - self.b_sum_a_n + self.x_n
        inner = mean_product(sum_ab, self.x_n.sum() - self.x_n, self.n - 1)
        return np.asarray(inner), *delete_one(self.a.q_n, self.a.r_n), *delete_one(self.b.q_n, self.b.r_n)

    def inner_ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of I."""
        return jackknife_interval(self.inner, self._deleted()[0], level)

    def cosine_ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of the cosine; NaN where some sample left out makes a signal negative. Raises ValueError for n < 3."""
        inner, signal_a, _, signal_b, _ = self._deleted()
        return jackknife_interval(self.cosine, np.asarray(cosine(inner, signal_a, signal_b)), level)

    def constructive_ci(self, level: float = LEVEL) -> tuple[float, float]:
        """Interval of the constructive G-SNR."""
        inner, _, noise_a, signal_b, _ = self._deleted()
        return jackknife_interval(self.constructive, np.asarray(constructive(inner, noise_a, signal_b)), level)

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
