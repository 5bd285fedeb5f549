"""Does a criterion rank as the benefit does, and what does its pick cost? Pure functions of arrays, float64.

Shapes: R rows (what may be chosen), S seeds. criterion_R: larger is better; NaN, where it is not defined, ranks last. benefit_RS: what each row
brought with each seed, against doing nothing, which brings 0 and may be chosen too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
NONE = (float("nan"), float("nan"))


def ranked(criterion_R: Array) -> Array:
    """The values with what is not defined below all others."""
    known = criterion_R[np.isfinite(criterion_R)]
    return np.where(np.isfinite(criterion_R), criterion_R, known.min() - 1 if len(known) else 0.0)


def _correlations(x_KR: Array, y_KR: Array) -> Array:
    """(K,) rank correlations of K pairs of rows; NaN where either is all ties."""
    from scipy.stats import rankdata  # half a second to import, for every command that draws

    a_KR, b_KR = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x_KR, y_KR))
    size_K = np.sqrt(np.square(a_KR).sum(1) * np.square(b_KR).sum(1))
    return np.where(size_K > 0, (a_KR * b_KR).sum(1) / np.where(size_K > 0, size_K, 1.0), np.nan)


def spearman(x_R: Array, y_R: Array) -> float:
    """Rank correlation, ties by their mean rank; NaN where either is all ties."""
    return float(_correlations(x_R[None], y_R[None])[0])


def spearman_interval(x_R: Array, y_R: Array, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap over rows; NaN for fewer than four rows, and where more than half of the resamples have no rank correlation."""
    if len(x_R) < 4:
        return NONE
    drawn = np.random.default_rng(seed).integers(len(x_R), size=(RESAMPLES, len(x_R)))
    found = _correlations(x_R[drawn], y_R[drawn])
    found = found[np.isfinite(found)]
    if len(found) < RESAMPLES / 2:
        return NONE
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Of one criterion. pick: the row where it is largest, None where it is nowhere defined. spearman: with the benefit, over rows. regret: the
    best row's mean benefit (or 0, of doing nothing) minus the pick's; regret_sd: over seeds, for the best row as it is by the mean."""

    pick: int | None
    spearman: float
    interval: tuple[float, float]
    regret: float
    regret_sd: float


def pick(criterion_R: Array) -> int | None:
    """The row where it is largest; None where it is nowhere defined."""
    return int(np.nanargmax(criterion_R)) if np.isfinite(criterion_R).any() else None


def judge(criterion_R: Array, benefit_RS: Array) -> Judgement:
    values, mean_R = ranked(criterion_R), benefit_RS.mean(1)
    chosen = pick(criterion_R)
    best_S = benefit_RS[mean_R.argmax()] if mean_R.max() > 0 else np.zeros(benefit_RS.shape[1])
    regret_S = best_S - benefit_RS[chosen] if chosen is not None else np.full(benefit_RS.shape[1], np.nan)
    return Judgement(
        pick=chosen,
        spearman=spearman(values, mean_R),
        interval=spearman_interval(values, mean_R),
        regret=float(regret_S.mean()),
        regret_sd=float(regret_S.std(ddof=1)) if len(regret_S) > 1 else float("nan"),
    )


def misplaced(criterion_R: Array, control_R: NDArray[np.bool_]) -> list[int]:
    """The controls that do not rank below every other row: a criterion with any has failed. One that is not defined ranks last."""
    others = criterion_R[~control_R]
    least = others.min() if np.isfinite(others).all() and len(others) else -np.inf
    return [int(i) for i in np.flatnonzero(control_R) if np.isfinite(criterion_R[i]) and not criterion_R[i] < least]
