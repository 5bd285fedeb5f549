"""`conv1x1`: one 1x1 convolution over the token grid: `linear` with the weights of a convolution (iREPA's code)."""

from __future__ import annotations

from gsnr.train.projectors._conv import GridConv


class Projector(GridConv):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__(hidden_size, out_channels, grid, (1,))
