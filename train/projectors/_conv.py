"""Convolutions over the token grid: blocks of convolution, GroupNorm and SiLU, then one convolution (AHPA App. D.1)."""

from __future__ import annotations

from math import gcd

from torch import Tensor, nn

NORM_GROUPS = 32


class GridConv(nn.Module):
    """kernels: one a convolution; all but the last keep the width and are followed by GroupNorm (32 groups where they divide it) and SiLU."""

    def __init__(self, hidden_size: int, out_channels: int, grid: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        blocks: list[nn.Module] = []
        for kernel in kernels[:-1]:
            norm = nn.GroupNorm(gcd(NORM_GROUPS, hidden_size), hidden_size)
            blocks += [nn.Conv2d(hidden_size, hidden_size, kernel, padding=kernel // 2), norm, nn.SiLU()]
        self.conv = nn.Sequential(*blocks, nn.Conv2d(hidden_size, out_channels, kernels[-1], padding=kernels[-1] // 2))

    def forward(self, h_BTD: Tensor) -> Tensor:
        h_BDgg = h_BTD.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.conv(h_BDgg).flatten(2).transpose(1, 2)
