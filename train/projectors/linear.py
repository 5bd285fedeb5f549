"""`linear`: one linear layer on each token (AHPA Table D.13 (f))."""

from __future__ import annotations

from gsnr.train.projectors._mlp import TokenMLP


class Projector(TokenMLP):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__([hidden_size, out_channels])
