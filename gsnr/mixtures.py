"""Mixtures of K losses with an objective: which weights descend a main loss most per unit of noise, and which have the best G-SNR.

Legend: g_k mean gradient of loss k, g_d of the main loss; for a batch of B samples

    c_k = <g_k, g_d>      M_kl = <g_k, g_l>      V_kl = tr Cov(g_k, g_l)      A = M + V / B = E <G_k, G_l>

all unbiased. A step along the batch gradient of sum_k w_k L_k lowers the main loss, where its curvature is that of the identity and the step size is
the best, by (w.c)^2 / (2 w^T A w) in expectation (`descent`). Its maximum over w >= 0 with w.c > 0 is a non-negative least-squares problem. The
rival that knows no main loss maximises (w^T M w) / (w^T V w), the G-SNR of the mixture: on each support a generalised eigenvector of (M, V).

Losses are first divided by sqrt(A_kk), the size of their batch gradient, which unlike sqrt(U_k) is positive for any data; so weights of scaled
losses scale inversely, and `shares` do not change. M and V of pairs come from U and V of the sum of two losses, in the same pass as all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, eigh, solve_triangular
from scipy.optimize import nnls
from torch import Tensor, nn

from gsnr.batches import Batch
from gsnr.engines import Common
from gsnr.estimates import Array, delete_one
from gsnr.intervals import jackknife_interval
from gsnr.measurement import compare
from gsnr.moments import ALL

MOST = 8  # losses: supports are enumerated, and pairs measured


@dataclass(frozen=True, kw_only=True)
class Products:
    """Of K losses and n samples: c_K, M_KK, V_KK; and without sample i: c_NK, M_NKK, V_NKK."""

    names: tuple[str, ...]
    n: int
    c_K: Array
    m_KK: Array
    v_KK: Array
    c_NK: Array
    m_NKK: Array
    v_NKK: Array


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """weights: of the losses as they are, at least 0, sum 1. shares: of the losses divided by the size of their batch gradients, sum 1. descent:
    of the main loss. helps: some weighted sum descends it, in expectation; if not, and for the rival, weights are those without any claim: uniform.
    """

    names: tuple[str, ...]
    weights: Array
    shares: Array
    descent: float
    helps: bool


def products(
    model: nn.Module,
    losses: Mapping[str, Callable[..., Tensor]],
    main: Callable[..., Tensor],
    batches: Iterable[Batch],
    *,
    group: str = ALL,
    common: Common | None = None,
    **options: Any,
) -> Products:
    """One pass with the K losses, their K (K - 1) / 2 sums and the main loss; group: of parameters; options, errors: as of `gsnr.compare`.

    Raises ValueError for fewer than one or more than MOST losses."""
    names = tuple(losses)
    if not 1 <= len(names) <= MOST:
        raise ValueError(f"a mixture of {len(names)} losses: 1 to {MOST} are needed")
    pairs = {(i, j): f"{names[i]} + {names[j]}" for i, j in combinations(range(len(names)), 2)}
    sums = {name: _sum(losses[names[i]], losses[names[j]]) for (i, j), name in pairs.items()}
    found = compare(model, dict(losses) | sums, main, batches, common=common, **options)
    each = {name: result[group] for name, result in found.items()}
    n = next(iter(each.values())).n
    m_KK, v_KK = np.empty((2, len(names), len(names)))
    m_NKK, v_NKK = np.empty((2, n, len(names), len(names)))
    deleted = {name: delete_one(c.a.q_n, c.a.r_n) for name, c in each.items() if c.a.r_n is not None}
    for i, name in enumerate(names):
        m_KK[i, i], v_KK[i, i] = each[name].a.signal, each[name].a.noise
        m_NKK[:, i, i], v_NKK[:, i, i] = deleted[name]
    for (i, j), name in pairs.items():
        whole: tuple[Any, ...] = (each[name].a.signal, each[name].a.noise, *deleted[name])
        for of, value in zip((m_KK, v_KK, m_NKK, v_NKK), whole, strict=True):
            of[..., i, j] = of[..., j, i] = (value - of[..., i, i] - of[..., j, j]) / 2
    c_NK = np.stack([each[name].deleted()[0] for name in names], axis=1)
    c_K = np.array([each[name].inner for name in names])
    return Products(names=names, n=n, c_K=c_K, m_KK=m_KK, v_KK=v_KK, c_NK=c_NK, m_NKK=m_NKK, v_NKK=v_NKK)


def _sum(one: Callable[..., Tensor], other: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *words: one(*words) + other(*words)


def power(p: Products, batch: int) -> Array:
    """A (K,K). Positive semi-definite for batches of at most n samples, for then it is a sum of two such matrices. Raises ValueError for larger."""
    if not 1 <= batch <= p.n:
        raise ValueError(f"batch {batch}: a mixture is found for batches of 1 to {p.n} samples, as many as were measured")
    return p.m_KK + p.v_KK / batch


def best_direction(c_K: Array, a_KK: Array) -> Array:
    """(K,) w >= 0 that maximises (w.c)^2 / (w^T A w) with w.c > 0, sum 1; zeros where no w descends. Raises ValueError for an A that is not positive
    definite: two losses have the same gradients.

    min w^T A w - 2 w.c over w >= 0 has the same direction, and with A = L L^T it is min |L^T w - L^-1 c|^2."""
    scale_K = np.sqrt(np.diagonal(a_KK))
    if not (scale_K > 0).all():
        raise ValueError("a loss of the mixture has no gradient")
    try:
        lower = np.linalg.cholesky(a_KK / np.outer(scale_K, scale_K))
    except np.linalg.LinAlgError as error:
        raise ValueError("two losses of the mixture have the same gradients; leave one out") from error
    w_K = nnls(lower.T, solve_triangular(lower, c_K / scale_K, lower=True))[0] / scale_K
    return w_K / w_K.sum() if w_K.any() else w_K


def best_ratio(m_KK: Array, v_KK: Array) -> Array:
    """(K,) w >= 0, sum 1, that maximises (w^T M w) / (w^T V w): the best, over all supports, of the generalised eigenvectors without a sign change.
    Raises ValueError for a V that is not positive definite."""
    best, found = -np.inf, np.zeros(len(m_KK))
    for size in range(1, len(m_KK) + 1):
        for support in map(list, combinations(range(len(m_KK)), size)):
            try:
                values, vectors = eigh(m_KK[np.ix_(support, support)], v_KK[np.ix_(support, support)])
            except LinAlgError as error:
                raise ValueError("two losses of the mixture have the same noise; leave one out") from error
            for value, vector in zip(values, vectors.T, strict=True):
                if value > best and (np.all(vector >= 0) or np.all(vector <= 0)):
                    best, found = float(value), np.zeros(len(m_KK))
                    found[support] = np.abs(vector) / np.abs(vector).sum()
    return found


def descent(w_K: Array, c_K: Array, a_KK: Array) -> float:
    """(w.c)^2 / (w^T A w) with the sign of w.c; 0 for w = 0."""
    along, size = float(w_K @ c_K), float(w_K @ a_KK @ w_K)
    return along * abs(along) / size if size > 0 else 0.0


def mixture(p: Products, batch: int) -> Mixture:
    """The one that descends the main loss most per unit of update power. Raises ValueError as `power` and `best_direction` do."""
    a_KK = power(p, batch)
    return _made(p, best_direction(p.c_K, a_KK), a_KK)


def agnostic(p: Products, batch: int) -> Mixture:
    """The one of the best G-SNR, whatever the main loss. Raises ValueError as `power` and `best_ratio` do."""
    return _made(p, best_ratio(p.m_KK, p.v_KK), power(p, batch))


def _made(p: Products, w_K: Array, a_KK: Array) -> Mixture:
    helps = bool(w_K.any())
    weights = w_K if helps else np.full(len(w_K), 1 / len(w_K))
    sized = weights * np.sqrt(np.diagonal(a_KK))
    return Mixture(names=p.names, weights=weights, shares=sized / sized.sum(), descent=descent(w_K, p.c_K, a_KK), helps=helps)


def weight_intervals(p: Products, batch: int, level: float = 0.95) -> list[tuple[float, float]]:
    """Of each weight of `mixture`, by the jackknife over samples; rough where a weight is 0. Without a sample that leaves nothing to descend they are
    uniform, as there."""
    whole = mixture(p, batch)
    deleted_NK = np.empty_like(p.c_NK)
    for i in range(p.n):
        w_K = best_direction(p.c_NK[i], p.m_NKK[i] + p.v_NKK[i] / batch)
        deleted_NK[i] = w_K if w_K.any() else 1 / len(w_K)
    return [jackknife_interval(float(w), deleted_NK[:, k], level) for k, w in enumerate(whole.weights)]
