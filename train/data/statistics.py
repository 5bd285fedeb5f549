"""Mean and standard deviation of features per layer and channel, over images and tokens, from sums that add over batches, shards and ranks.

Shapes: B images, L layers, C channels, (g,g) token grid.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Sums = dict[str, NDArray[np.float64]]  # group -> (3,L,C): values summed, their squares summed, how many there were


def sums_of(f_BLCgg: Tensor) -> NDArray[np.float64]:
    """(3,L,C) of one group. A square of a float16 is exact in float32; what is added up is added in float64."""
    f = f_BLCgg.float()
    total = f.sum((0, 3, 4), dtype=torch.float64)
    squares = f.square().sum((0, 3, 4), dtype=torch.float64)
    return torch.stack([total, squares, torch.full_like(total, f.numel() / total.numel())]).cpu().numpy()


def add(a: Sums, b: Sums) -> Sums:
    """The sums of both; a group that only one has is taken as it is."""
    return {group: a[group] + b[group] if group in a and group in b else (a if group in a else b)[group] for group in {**a, **b}}


def mean_and_std(sums: Sums) -> dict[str, NDArray[np.float32]]:
    """GROUP_mean, GROUP_std, each (L,C). A deviation below what float16 resolves of its mean is 0: the channel does not vary."""
    found: dict[str, NDArray[np.float32]] = {}
    for group, (total, squares, n) in sums.items():
        mean = total / n
        std = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
        found |= {f"{group}_mean": mean.astype(np.float32), f"{group}_std": np.where(std > 1e-4 * np.abs(mean), std, 0.0).astype(np.float32)}
    return found
