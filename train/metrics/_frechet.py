"""Fréchet distance of two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500), its spread and its limit.

    d^2 = ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

The root's trace is that of (R C R)^(1/2), R = C_ref^(1/2): symmetric, so its eigenvalues are real, and those below 0 are rounding. No matrix is
ever regularised: ADM's evaluator adds 1e-6 to the diagonals where its root is not finite, which cannot happen here.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from gsnr.intervals import jackknife_se
from gsnr.train.metrics import BLOCKS, Blocks, Moments, Values

ROOMY = 2  # samples a feature from which the bias is linear in 1/n


class Distance:
    """d^2 to one reference, whose root is taken once."""

    def __init__(self, reference: Moments) -> None:
        values, vectors = scipy.linalg.eigh(reference.covariance, driver="evd")
        self.reference, self.root = reference, (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T

    def __call__(self, of: Moments) -> float:
        """Biased upwards by an amount that falls with the number of images, so compare only equal numbers."""
        inner = scipy.linalg.eigvalsh(self.root @ of.covariance @ self.root, overwrite_a=True)
        cross = np.sqrt(np.maximum(inner, 0.0)).sum()
        apart = np.square(of.mean - self.reference.mean).sum()
        return float(apart + np.trace(of.covariance) + np.trace(self.reference.covariance) - 2 * cross)


def with_spread(name: str, samples: Blocks, reference: Moments) -> Values:
    """The distance; `_se`, its standard error by a jackknife over blocks of samples, each left out once (the reference counts as exact); and
    `_infinity`, the limit of infinitely many samples (Chong and Forsyth 2020, arXiv:1911.07023)."""
    to = Distance(reference)
    blocks = len(samples.n_K)
    value = to(samples.whole)
    enough = samples.n_K.min() >= 2
    deleted = [to(samples.merged([k for k in range(blocks) if k != left])) for left in range(blocks)] if enough else []
    return {name: value, f"{name}_se": jackknife_se(np.array(deleted)) if enough else None, f"{name}_infinity": _infinity(to, samples, value)}


def _infinity(to: Distance, samples: Blocks, whole: float) -> float | None:
    """The intercept of a line in 1/n through means over disjoint parts: all, halves, fifths. Such means have about one variance, so the points count
    alike. None with fewer than two sizes that are `ROOMY`."""
    assert len(samples.n_K) == BLOCKS
    n, points = int(samples.n_K.sum()), [(1 / samples.n_K.sum(), whole)]
    for size in (2, 5):
        if n * size / BLOCKS >= ROOMY * len(to.root):
            parts = [to(samples.merged(range(first, first + size))) for first in range(0, BLOCKS, size)]
            points.append((BLOCKS / (n * size), float(np.mean(parts))))
    return extrapolated(points) if len(points) > 1 else None


def extrapolated(points: list[tuple[float, float]]) -> float:
    """The value at 0 of the least-squares line through (1/n, value)."""
    x, y = np.array(points).T
    return float(np.polynomial.polynomial.polyfit(x, y, 1)[0])
