"""MIND (arXiv:2605.06797): three times D times the mean, over 1000 random directions, of the squared distance between the sorted projections of
two sets of equal size (sliced Wasserstein-2). A shift by delta gives 3 ||delta||^2. The larger set is cut at random to the size of the other."""

from __future__ import annotations

import numpy as np

from gsnr.train.metrics import Array, Rows, Values

LABEL = "MIND"
KIND = "pool"
NEEDS = "rows"
FEATURES = ()
COMPARES = True
DIRECTIONS, AT_ONCE = 1000, 100


def directions(rng: np.random.Generator, many: int, width: int) -> Array:
    """(many, width): uniform on the sphere."""
    drawn = rng.normal(size=(many, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def measure(samples: Rows, reference: Rows) -> Values:
    rng = np.random.default_rng(0)
    n, width = min(len(samples), len(reference)), samples.shape[1]
    x_ND, y_ND = (rows if len(rows) == n else rows[np.sort(rng.choice(len(rows), n, replace=False))] for rows in (samples, reference))
    total = 0.0
    for _ in range(DIRECTIONS // AT_ONCE):
        u_DU = directions(rng, AT_ONCE, width).T
        total += np.square(np.sort(x_ND @ u_DU, axis=0) - np.sort(y_ND @ u_DU, axis=0)).mean(0).sum()
    return {"mind": float(3 * width * total / DIRECTIONS)}
