"""A stranger's projector: one hidden layer of twice the width."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Module):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size), nn.SiLU(), nn.Linear(2 * hidden_size, out_channels))

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.layers(h_BTD)
