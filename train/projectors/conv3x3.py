"""`conv3x3`: one 3x3 convolution over the token grid (AHPA Table D.13 (l), the default)."""

from __future__ import annotations

from gsnr.train.projectors._conv import GridConv


class Projector(GridConv):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__(hidden_size, out_channels, grid, (3,))
