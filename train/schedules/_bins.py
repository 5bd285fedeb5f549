"""A weight a bin of t, as a function of t. Shapes: B samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def of_bins(t_B: Tensor, edges: Sequence[float], weights: Sequence[float]) -> Tensor:
    """(B,) of the dtype of t. A bin holds its lower edge, the last one both."""
    found = torch.full_like(t_B, weights[0])
    for low, weight in zip(edges[1:-1], weights[1:], strict=True):
        found = torch.where(t_B >= low, weight, found)
    return found
