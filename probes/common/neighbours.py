"""Second moments of what a convolution reads, without writing out the neighbourhood of every token.

The input of tap (i, j) at place p of a g x g grid is x[p, i, j] = h[p + (i, j) - r], 0 outside the grid, with r = k // 2. Rows of taps at a distance
of each other repeat the same products: a block of sum_p x x^T depends on the distance of its two rows of taps alone, but for the first and last rows
of the grid. So k distances are multiplied out in place of k^2 pairs, of inputs that are k times as many as the channels, not k^2 times.
Shapes: B samples, g rows of the grid, g columns (one row and one column for tokens without neighbours), E channels, F = k E, C outputs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def by_rows(x_BTC: Tensor, kernel: int) -> Tensor:
    """(g,B,g,C): a row of the grid is contiguous. Without neighbours (kernel 1) all tokens are one row of single columns, (1,B*T,1,C)."""
    if kernel == 1:
        return x_BTC.flatten(0, -2)[None, :, None]
    grid = round(x_BTC.shape[1] ** 0.5)
    return x_BTC.unflatten(1, (grid, grid)).transpose(0, 1)


def beside(x_gBgE: Tensor, kernel: int) -> Tensor:
    """(g,B*g,F): each place with its neighbours in the same row, 0 outside."""
    if kernel == 1:
        return x_gBgE.flatten(1, 2)
    columns, r = x_gBgE.shape[2], kernel // 2
    padded = F.pad(x_gBgE, (0, 0, r, r))
    return torch.cat([padded[:, :, j : j + columns] for j in range(kernel)], dim=3).flatten(1, 2)


def add_squares(total_FF: Tensor, z_gNF: Tensor, kernel: int) -> None:
    """Adds sum_p x x^T to total (k F, k F), float64, its upper blocks alone: of rows of taps i <= j."""
    grid, inputs, r = *z_gNF.shape[::2], kernel // 2
    for lag in range(kernel):
        spans = {i: (max(0, i - r), min(grid - lag, grid + i - r)) for i in range(kernel - lag)}  # of rows that tap row i and its partner read
        cuts = sorted({end for span in spans.values() for end in span if span[0] < span[1]})
        for low, high in pairwise(cuts):
            product_FF = z_gNF[low:high].flatten(0, 1).T @ z_gNF[low + lag : high + lag].flatten(0, 1)
            for i, span in spans.items():
                if span[0] <= low and high <= span[1]:
                    total_FF[i * inputs : (i + 1) * inputs, (i + lag) * inputs : (i + lag + 1) * inputs] += product_FF


def add_products(total_FC: Tensor, z_gNF: Tensor, y_gNC: Tensor, kernel: int) -> None:
    """Adds sum_p x y^T to total (k F, C), float64."""
    grid, inputs, r = *z_gNF.shape[::2], kernel // 2
    for i in range(kernel):
        low, high = max(0, r - i), min(grid, grid + r - i)  # places whose neighbours of tap row i lie on the grid
        if low < high:
            read_NF = z_gNF[low + i - r : high + i - r].flatten(0, 1)
            total_FC[i * inputs : (i + 1) * inputs] += read_NF.T @ y_gNC[low:high].flatten(0, 1)


def mirrored(total_FF: Tensor, kernel: int) -> Tensor:
    """The whole of a symmetric matrix whose upper blocks are given."""
    inputs = len(total_FF) // kernel
    row = torch.arange(len(total_FF), device=total_FF.device) // inputs
    return torch.where(row.unsqueeze(1) <= row, total_FF, total_FF.mT)
