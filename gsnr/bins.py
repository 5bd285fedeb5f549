"""Bins over an interval. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform_edges(count: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
    """`count` bins of equal width: (count + 1,) edges from `low` to `high`. Raises ValueError for count < 1."""
    if count < 1:
        raise ValueError(f"--bins {count}: at least one bin is needed")
    return np.linspace(low, high, count + 1)
