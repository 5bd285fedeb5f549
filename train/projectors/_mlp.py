"""Perceptrons over each token: linear layers with SiLU between them, initialised as in REPA's and SRA's code (Xavier, bias zero)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class TokenMLP(nn.Module):
    """widths: of the input, the hidden layers and the output."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], *(module for layer in layers[1:] for module in (nn.SiLU(), layer)))

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.mlp(h_BTD)
