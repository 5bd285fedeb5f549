"""`conv3x3`: one 3x3 convolution over the token grid (AHPA Table D.13 (l))."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Module):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(hidden_size, out_channels, 3, padding=1)

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_BDgg = h_BTD.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.conv(h_BDgg).flatten(2).transpose(1, 2)
