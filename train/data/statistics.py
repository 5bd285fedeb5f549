"""Mean and standard deviation of features per layer and channel, over images and tokens, from sums that add over batches, shards and ranks; and
the scaling of latents that such sums give.

Shapes: B images, L layers, C channels, (g,g) token grid, (h,w) latent grid.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.train.data.latents import Scaling

LATENT = "latent"  # the entry of the sums that the latents have
MEASURES = ("scalar", "channel")
Sums = dict[str, NDArray[np.float64]]  # group -> (3,L,C): values summed, their squares summed, how many there were


def sums_of(f_BLCgg: Tensor) -> NDArray[np.float64]:
    """(3,L,C) of one group. A square of a float16 is exact in float32; what is added up is added in float64."""
    f = f_BLCgg.float()
    total = f.sum((0, 3, 4), dtype=torch.float64)
    squares = f.square().sum((0, 3, 4), dtype=torch.float64)
    return torch.stack([total, squares, torch.full_like(total, f.numel() / total.numel())]).cpu().numpy()


def latent_sums(mean_BChw: Tensor, std_BChw: Tensor) -> NDArray[np.float64]:
    """(3,1,C) of latents mean + std * noise, the expectation over the noise taken exactly."""
    mean, std = mean_BChw.double(), std_BChw.double()
    total, squares = mean.sum((0, 2, 3)), (mean.square() + std.square()).sum((0, 2, 3))
    return torch.stack([total, squares, torch.full_like(total, mean.numel() / total.numel())]).unsqueeze(1).cpu().numpy()


def scaling_of(sums_31C: NDArray[np.float64], measure: str) -> Scaling:
    """To unit variance. scalar: one factor, one over the standard deviation of all elements; the mean stays (Rombach et
    al. 2022, App. G; diffusers' `scaling_factor`). channel: to mean 0 and variance 1 in each channel. Raises ValueError
    naming a channel that does not vary."""
    total, squares, n = sums_31C[:, 0]
    if measure == "scalar":
        total, squares, n = (x.sum(keepdims=True) for x in (total, squares, n))
    mean = total / n
    variance = squares / n - mean**2
    still = variance <= 1e-8 * mean**2  # what `mean_and_std` calls a channel that does not vary
    if still.any():
        which = "the latents do" if measure == "scalar" else f"channel {int(still.argmax())} of the latents does"
        raise ValueError(f"--latent-scale {measure}: {which} not vary over the train split")
    scale = 1 / np.sqrt(variance)
    if measure == "scalar":
        return Scaling(factor=float(scale[0]))
    return Scaling(factor=1.0, channel_scale=tuple(scale.tolist()), channel_bias=tuple(mean.tolist()))


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
