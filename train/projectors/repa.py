"""`repa`: REPA's head, d -> 2048 -> 2048 -> C with SiLU (Yu et al. 2025; `projector_dim` there)."""

from __future__ import annotations

from gsnr.train.projectors._mlp import TokenMLP

WIDTH = 2048


class Projector(TokenMLP):
    def __init__(self, hidden_size: int, out_channels: int, grid: int, width: int = WIDTH) -> None:
        super().__init__([hidden_size, width, width, out_channels])
