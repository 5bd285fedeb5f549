"""The routers' perceptron: linear layers with SiLU between them, the last zero-initialised, so that training starts at the uniform mixture."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

HIDDEN = 256  # Table A.9


def perceptron(inputs: int, depth: int, outputs: int) -> nn.Sequential:
    """`depth` linear layers."""
    layers = [nn.Linear(a, b) for a, b in pairwise([inputs, *[HIDDEN] * (depth - 1), outputs])]
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(layers[0], *(module for layer in layers[1:] for module in (nn.SiLU(), layer)))
