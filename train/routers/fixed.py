"""`fixed`: the uniform mixture at every t, without parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Router(nn.Module):
    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, t_B: Tensor) -> dict[str, Tensor]:
        parts = self.sizes | {"beta": len(self.sizes)}
        return {name: torch.full((len(t_B), k), 1.0 / k, device=t_B.device) for name, k in parts.items()}
