"""Metrics: numbers from the features of two sets of images. One file each, found by name (the word of `gsnr evaluate --metrics`); a file has

LABEL      what tables call it
KIND       which features it takes: "pool", "spatial", "probabilities" or, of images with their captions, "pairs" (gsnr.train.extractors)
NEEDS      "moments": of the samples `Blocks`, of the reference `Moments`, so that no features are kept; "rows": all of them, (N,D) float32
FEATURES   the extractors that it is defined on; () for any
COMPARES   False where there is nothing to compare with, and the reference is None
measure(samples, reference) -> {name: value, ...}

The first key is the file's name, others begin with it and `_`. A value is a float, or None where the samples are too few for it. What a metric
draws at random comes from a generator of its own: the same features give the same numbers. Shapes: N samples, M reference images, D features,
K blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.float32]
Values = dict[str, float | None]
KINDS = ("pool", "spatial", "probabilities", "pairs")
FORMS = ("moments", "rows")
FLUSH = 512  # rows of a block that are summed at once: a product of fewer moves more memory than it computes
BLOCKS = 10  # of the samples, for spread and extrapolation


@dataclass(frozen=True, kw_only=True)
class Moments:
    """mean (D,) and covariance (D,D), unbiased, of n feature vectors, float64. n: None where a file of moments does not say it."""

    n: int | None
    mean: Array
    covariance: Array

    @staticmethod
    def of(features_ND: Rows | Array) -> Moments:
        x_ND = np.asarray(features_ND, np.float64)
        return Moments(n=len(x_ND), mean=x_ND.mean(0), covariance=np.atleast_2d(np.cov(x_ND, rowvar=False)))


class Blocks:
    """Sums of x and x x^T in float64 over K disjoint random blocks of N feature vectors, which are added in order and not kept.

    The blocks are drawn by a generator of their own and are equal to within one, whatever order the classes come in."""

    def __init__(self, n: int, blocks: int = BLOCKS) -> None:
        self.block_N = np.random.default_rng(0).permutation(n) % blocks
        self.n_K = np.bincount(self.block_N, minlength=blocks)
        self.seen = 0
        self.waiting: list[list[Rows]] = [[] for _ in range(blocks)]
        self.sum_KD = self.outer_KDD = np.zeros(0)

    @staticmethod
    def of(features_ND: Rows, blocks: int = BLOCKS) -> Blocks:
        made = Blocks(len(features_ND), blocks)
        made.add(features_ND)
        return made

    def add(self, features_BD: Rows) -> None:
        """The next B of the N."""
        if not self.sum_KD.size:
            width = features_BD.shape[1]
            self.sum_KD, self.outer_KDD = np.zeros((len(self.n_K), width)), np.zeros((len(self.n_K), width, width))
        block_B = self.block_N[self.seen : self.seen + len(features_BD)]
        assert len(block_B) == len(features_BD)
        self.seen += len(features_BD)
        for k in np.unique(block_B):
            self.waiting[k].append(features_BD[block_B == k])
            if sum(map(len, self.waiting[k])) >= FLUSH:
                self._flush(k)

    def _flush(self, k: int) -> None:
        x_BD = np.concatenate(self.waiting[k]).astype(np.float64)
        self.waiting[k] = []
        self.sum_KD[k] += x_BD.sum(0)
        self.outer_KDD[k] += x_BD.T @ x_BD

    def merged(self, blocks: range | list[int]) -> Moments:
        """The moments of some blocks together."""
        assert self.seen == len(self.block_N)
        for k in [k for k in blocks if self.waiting[k]]:
            self._flush(k)
        n = int(self.n_K[list(blocks)].sum())
        mean = sum(self.sum_KD[k] for k in blocks) / n
        outer = sum(self.outer_KDD[k] for k in blocks)
        return Moments(n=n, mean=mean, covariance=(outer - n * np.outer(mean, mean)) / (n - 1))

    @property
    def whole(self) -> Moments:
        return self.merged(range(len(self.n_K)))
