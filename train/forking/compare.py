"""Paired differences of forks from the vanilla fork of the same seed, with two kinds of interval, and the power of such a comparison.

* over seeds: Student's t on one difference a seed. It is about new batches and noise; the held-out images are taken as they are.
* over images: the seeds as they are, other held-out images (a t interval of paired differences of each image) or other samples (a jackknife of
  the Fréchet distances over blocks of samples, the same noise in both).

Shapes: S seeds, T strata of t, N held-out images, K blocks of samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsnr.intervals import detectable_effect, jackknife_interval, student_interval
from gsnr.train.metrics import Blocks, Moments
from gsnr.train.metrics._frechet import Distance

Array = NDArray[np.float64]
LEVEL = 0.95
BLOCKS = 16  # of samples, for the jackknife
NONE = (float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished fork. loss_TN: of each held-out image in each stratum of t. deleted_K: Fréchet distances with each block of samples left out;
    empty where none was asked for."""

    row: str
    seed: int
    values: dict[str, float]
    loss_TN: Array
    deleted_K: Array


def deleted_distances(features_MF: NDArray[np.float32], reference: Moments) -> Array:
    """(K,) Fréchet distances, each without one block of samples."""
    blocks, to = Blocks.of(features_MF, BLOCKS), Distance(reference)
    return np.array([to(blocks.merged([k for k in range(BLOCKS) if k != left])) for left in range(BLOCKS)])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of one row and metric from vanilla, mean over seeds. low, high: range of t it is of. sd: over seeds of one seed's difference."""

    row: str
    metric: str
    t_low: float
    t_high: float
    seeds: int
    vanilla: float
    difference: float
    sd: float
    over_seeds: tuple[float, float]
    over_images: tuple[float, float]

    @property
    def separates(self) -> bool:
        """The interval over seeds leaves out 0."""
        return self.over_seeds[0] > 0 or self.over_seeds[1] < 0


def _over_seeds(d_S: Array) -> tuple[float, tuple[float, float]]:
    """Standard deviation and interval; NaN for one seed."""
    if len(d_S) < 2:
        return float("nan"), NONE
    sd = float(d_S.std(ddof=1))
    return sd, student_interval(float(d_S.mean()), sd / np.sqrt(len(d_S)), len(d_S), LEVEL)


def _over_images(d_N: Array) -> tuple[float, float]:
    return student_interval(float(d_N.mean()), float(d_N.std(ddof=1)) / np.sqrt(len(d_N)), len(d_N), LEVEL)


def _difference(row: str, metric: str, t: tuple[float, float], pairs: list[tuple[float, float]], over_images: tuple[float, float]) -> Difference:
    """pairs: (the row's value, vanilla's) of each seed."""
    mine_S, vanilla_S = np.array(pairs, np.float64).T
    sd, over_seeds = _over_seeds(mine_S - vanilla_S)
    return Difference(
        row=row,
        metric=metric,
        t_low=t[0],
        t_high=t[1],
        seeds=len(pairs),
        vanilla=float(vanilla_S.mean()),
        difference=float((mine_S - vanilla_S).mean()),
        sd=sd,
        over_seeds=over_seeds,
        over_images=over_images,
    )


def differences(forks: Iterable[Measured], vanilla: str) -> list[Difference]:
    """Of every row but vanilla, over the seeds that both have, in the order of the rows: each metric, and the velocity loss also stratum by
    stratum."""
    of: dict[str, dict[int, Measured]] = {}
    for fork in forks:
        of.setdefault(fork.row, {})[fork.seed] = fork
    found = []
    for row, mine in of.items():
        both = [(mine[seed], of[vanilla][seed]) for seed in mine if seed in of.get(vanilla, {})]
        if row == vanilla or not both:
            continue
        d_TN = np.mean([a.loss_TN - b.loss_TN for a, b in both], axis=0)
        for metric in both[0][0].values:
            pairs = [(a.values[metric], b.values[metric]) for a, b in both if metric in a.values and metric in b.values]
            found.append(_difference(row, metric, (0.0, 1.0), pairs, _of_metric(metric, both, d_TN)))
        for k, d_N in enumerate(d_TN):
            pairs = [(float(a.loss_TN[k].mean()), float(b.loss_TN[k].mean())) for a, b in both]
            found.append(_difference(row, "velocity_loss", (k / len(d_TN), (k + 1) / len(d_TN)), pairs, _over_images(d_N)))
    return found


def _of_metric(metric: str, both: list[tuple[Measured, Measured]], d_TN: Array) -> tuple[float, float]:
    """The interval over images; NaN for a metric without one."""
    if metric == "velocity_loss":
        return _over_images(d_TN.mean(0))
    if metric == "frechet" and all(len(a.deleted_K) and len(b.deleted_K) for a, b in both):
        value = float(np.mean([a.values[metric] - b.values[metric] for a, b in both]))
        return jackknife_interval(value, np.mean([a.deleted_K - b.deleted_K for a, b in both], axis=0), LEVEL)
    return NONE


@dataclass(frozen=True, kw_only=True)
class Power:
    """The smallest true difference of a metric that S seeds would have shown (two-sided 5 %) in 80 of 100 experiments.

    vanilla_sd, unpaired: from vanilla forks alone, whose seeds are independent: what rows that share no batch would need. paired_sd, paired: from
    the spread of the rows' own differences, pooled over rows; NaN before any row has two seeds."""

    metric: str
    seeds: int
    vanilla_sd: float
    unpaired: float
    paired_sd: float
    paired: float


def power(forks: list[Measured], found: list[Difference], vanilla: str) -> list[Power]:
    """One line a metric; [] with fewer than two seeds of vanilla."""
    of = [fork for fork in forks if fork.row == vanilla]
    if len(of) < 2:
        return []
    lines = []
    for metric in of[0].values:
        sd = float(np.std([fork.values[metric] for fork in of], ddof=1))
        own = [d for d in found if d.metric == metric and (d.t_low, d.t_high) == (0.0, 1.0) and d.seeds > 1]
        freedom = sum(d.seeds - 1 for d in own)
        pooled = float(np.sqrt(sum(d.sd**2 * (d.seeds - 1) for d in own) / freedom)) if freedom else float("nan")
        seeds = len(of)
        unpaired, paired = detectable_effect(np.sqrt(2) * sd, seeds), detectable_effect(pooled, seeds)
        lines.append(Power(metric=metric, seeds=seeds, vanilla_sd=sd, unpaired=unpaired, paired_sd=pooled, paired=paired))
    return lines
