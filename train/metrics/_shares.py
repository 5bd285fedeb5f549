"""A share of N images and its interval, and a mean and its standard error, as metrics give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsnr.intervals import wilson
from gsnr.train.metrics import Array, Values


def share(name: str, right_N: NDArray[np.bool_]) -> Values:
    """The share, and its 95 % interval (`_low`, `_high`); None of no images."""
    if not len(right_N):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = wilson(float(right_N.mean()), len(right_N))
    return {name: float(right_N.mean()), f"{name}_low": low, f"{name}_high": high}


def mean(name: str, values_N: Array) -> Values:
    """The mean, and its standard error (`_se`)."""
    return {name: float(values_N.mean()), f"{name}_se": float(values_N.std(ddof=1) / len(values_N) ** 0.5)}
