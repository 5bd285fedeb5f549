"""`mlp5`: five linear layers on each token, SiLU between them (AHPA Table D.13 (h), and SRA 2's head); hidden width = the model's."""

from __future__ import annotations

from gsnr.train.projectors._mlp import TokenMLP


class Projector(TokenMLP):
    def __init__(self, hidden_size: int, out_channels: int, grid: int) -> None:
        super().__init__([hidden_size] * 5 + [out_channels])
