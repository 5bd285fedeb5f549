"""Whitened features, and what a layer adds to the layer below it (RARE, arXiv 2609.34732; formulas as in our notes, no code is public).

Layer i is whitened to r directions: x_i = (f_i - mu_i) W_i. Its increment is x_i - x_j B, x_j the whitened layer below, B a reduced-rank ridge
regression, whose penalty and rank are chosen on images set aside. RARE divides the increment by its deviation in each direction, and scales it to
the norm of x_i; the spatial normalisation behind it takes both factors out again, so they are left out. All from sums, in float64.

Shapes: N tokens, C channels, R directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
LEAST = 1e-6  # of the largest variance: directions of less are not blown up further
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge, as shares of the inputs' unit variance
RANKS = (8, 4, 2, 1)  # the full rank over these


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over tokens of side by side inputs and outputs x: how many, x, and x x^T."""

    n: int
    total: Matrix
    products: Matrix

    @classmethod
    def of(cls, x_NC: Matrix) -> Moments:
        return cls(n=len(x_NC), total=x_NC.sum(0), products=x_NC.T @ x_NC)

    def __add__(self, other: Moments) -> Moments:
        return Moments(n=self.n + other.n, total=self.total + other.total, products=self.products + other.products)

    @property
    def mean(self) -> Matrix:
        return self.total / self.n

    def about(self, centre_C: Matrix) -> Matrix:
        """(C,C): mean of (x - centre)(x - centre)^T."""
        outer = np.outer(self.mean, centre_C)
        return self.products / self.n - outer - outer.T + np.outer(centre_C, centre_C)


def whitening(covariance_CC: Matrix, r: int) -> Matrix:
    """(C,r): the r directions of largest variance, each over its deviation; the sign is that which makes its largest entry positive."""
    variance, vectors = np.linalg.eigh(covariance_CC)
    variance, vectors = variance[::-1][:r], vectors[:, ::-1][:, :r]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(r)])
    return vectors * signs / np.sqrt(np.maximum(variance, LEAST * variance[0]))


def reduced_rank_ridge(xx: Matrix, xy: Matrix, penalty: float, rank: int) -> Matrix:
    """(R,R): B of least mean ||y - x B||^2 + penalty ||B||^2 of that rank at most, from the means xx of x^T x and xy of x^T y. It is the ridge
    solution, projected on the leading directions of what it predicts in the augmented data (Mukherjee and Zhu 2011)."""
    penalised = xx + penalty * np.eye(len(xx))
    full = np.linalg.solve(penalised, xy)
    _, vectors = np.linalg.eigh(full.T @ penalised @ full)
    kept = vectors[:, ::-1][:, :rank]
    return full @ kept @ kept.T


def error(xx: Matrix, xy: Matrix, yy: Matrix, b: Matrix) -> float:
    """Mean ||y - x B||^2 from means of products."""
    return float(np.trace(yy) - 2 * np.sum(b * xy) + np.sum(b * (xx @ b)))


def chosen(solves: Matrix, chooses: Matrix, r: int) -> Matrix:
    """(r,r): B with the penalty and rank of least error on tokens set aside. solves, chooses: (2r,2r) means of products of [x, y]."""
    here, there = ((m[:r, :r], m[:r, r:], m[r:, r:]) for m in (solves, chooses))
    tried = [reduced_rank_ridge(*here[:2], penalty, max(1, r // share)) for penalty in PENALTIES for share in RANKS]
    return min(tried, key=lambda b: error(*there, b))
