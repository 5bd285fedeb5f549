"""Bins of t in [0, 1]. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform_edges(count: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
    """`count` bins of equal width: (count + 1,) edges from `low` to `high`. Raises ValueError for count < 1."""
    if count < 1:
        raise ValueError(f"--bins {count}: at least one bin is needed")
    return np.linspace(low, high, count + 1)


LOGSNR_LIMIT = 9.2  # the end bins reach t = 0.01 and t = 0.99; logSNR itself has no end


def logsnr_edges(count: int) -> NDArray[np.float64]:
    """`count` bins of equal width in logSNR = 2 log((1-t)/t), from 9.2 to -9.2: (count + 1,) edges in t, ascending."""
    return 1 / (1 + np.exp(uniform_edges(count, LOGSNR_LIMIT, -LOGSNR_LIMIT) / 2))


SPACINGS = {"t": uniform_edges, "logsnr": logsnr_edges}
