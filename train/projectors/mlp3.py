"""`mlp3`: three linear layers on each token, SiLU between them (AHPA Table D.13 (g)); hidden width = the model's, which the paper leaves open."""

from __future__ import annotations

from gsnr.train.projectors._mlp import TokenMLP


class Projector(TokenMLP):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__([hidden_size] * 3 + [out_channels])
