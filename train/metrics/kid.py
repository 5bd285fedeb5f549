"""KID (Binkowski et al. 2018, arXiv:1801.01401): squared MMD with the kernel (x.y / D + 1)^3, unbiased (U-statistic, which may be below 0): the
mean over 100 pairs of random subsets of 1000, or of as many as there are."""

from __future__ import annotations

import numpy as np

from gsnr.train.metrics import Array, Rows, Values

LABEL = "KID"
KIND = "pool"
NEEDS = "rows"
FEATURES = ()
COMPARES = True
SUBSETS, SIZE = 100, 1000


def mmd(x_ND: Array, y_ND: Array) -> float:
    """The unbiased estimate for two sets of N."""
    n, width = x_ND.shape
    within = sum((z @ z.T / width + 1) ** 3 for z in (x_ND, y_ND))
    across = (x_ND @ y_ND.T / width + 1) ** 3
    return float((within.sum() - np.trace(within)) / (n * (n - 1)) - 2 * across.mean())


def measure(samples: Rows, reference: Rows) -> Values:
    """kid_std: over the subsets, which share images."""
    rng = np.random.default_rng(0)
    size = min(SIZE, len(samples), len(reference))
    values = [mmd(*(rows[rng.choice(len(rows), size, replace=False)].astype(np.float64) for rows in (samples, reference))) for _ in range(SUBSETS)]
    return {"kid": float(np.mean(values)), "kid_std": float(np.std(values))}
