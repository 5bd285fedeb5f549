"""Independence of two kernels over the same images, and the alignment that it gives. Shapes: N images, D and E features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def hsic(k_NN: Array, l_NN: Array) -> float:
    """Unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012, Eq. 5)."""
    n = len(k_NN)
    k, m = k_NN.copy(), l_NN.copy()
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(m, 0.0)
    trace = float((k * m.T).sum())
    sums = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * float(k.sum(0) @ m.sum(1))
    return (trace + sums - cross) / (n * (n - 3))


def cka(k_NN: Array, l_NN: Array) -> float:
    """Debiased centred kernel alignment (Kornblith et al. 2019, with the unbiased estimator in all three places); NaN where either kernel is not
    told from a constant."""
    product = hsic(k_NN, k_NN) * hsic(l_NN, l_NN)
    return hsic(k_NN, l_NN) / float(np.sqrt(product)) if product > 0 else float("nan")
