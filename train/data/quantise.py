"""Features in eight bits: one scale for each image, layer and channel, so that a channel's largest value over the tokens is 127 steps.

    scale = max_tokens |f| / 127 (float16),   q = round(f / scale) (int8),   f' = q scale (float16)

Shapes: B images, L layers, C channels, (g,g) token grid.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEPS = 127
SUFFIX = "_scale"  # column GROUP_scale beside column GROUP
DTYPES = ("float16", "int8")


def quantise(f_BLCgg: Tensor) -> tuple[Tensor, Tensor]:
    """(q (B,L,C,g,g) int8, scale (B,L,C) float16). Where the scale is below what float16 holds, q is 0."""
    scale_BLC = (f_BLCgg.abs().amax((-2, -1)) / STEPS).half()
    step = scale_BLC.float()[..., None, None]
    q = torch.where(step > 0, f_BLCgg / step, 0.0).round().clamp(-STEPS, STEPS)
    return q.to(torch.int8), scale_BLC


def dequantise(q_BLCgg: Tensor, scale_BLC: Tensor) -> Tensor:
    """(B,L,C,g,g) float16."""
    return q_BLCgg.half() * scale_BLC[..., None, None]


def dequantise_rows(q: NDArray[np.int8], scale: NDArray[np.float16]) -> NDArray[np.float16]:
    """`dequantise` of rows of a cache, one after another: what a row needs stays in the processor's cache, which halves the time."""
    f = np.empty(q.shape, dtype=np.float16)
    for row, (steps, step) in enumerate(zip(torch.from_numpy(q), torch.from_numpy(scale).float(), strict=True)):
        f[row] = steps.float().mul_(step[..., None, None]).half().numpy()
    return f
