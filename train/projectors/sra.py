"""`sra`: SRA's head: d -> 2d -> d with SiLU, on the student only (Jiang et al. 2026)."""

from __future__ import annotations

from gsnr.train.projectors._mlp import TokenMLP


class Projector(TokenMLP):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__([hidden_size, 2 * hidden_size, out_channels])
