"""Encodings of t in [0, 1] for a router (AHPA App. D.6, 1). Shapes: B samples, E = 128 channels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

CHANNELS = 128  # Table A.9
SINUSOIDAL_SCALE = 1000.0  # t is multiplied by it, so that the frequencies of Ho et al. (2020), made for steps 0..1000, fit
FOURIER_SIGMA = 16.0  # standard deviation of the frequencies; the paper gives none


class Linear(nn.Module):
    """e = W t + b, both learned (the paper's choice)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(1, CHANNELS)

    def forward(self, t_B: Tensor) -> Tensor:
        return self.project(t_B.unsqueeze(-1))


class _Waves(nn.Module):
    """Cosines and sines of t at fixed angular frequencies."""

    omega: Tensor

    def __init__(self, omega: Tensor) -> None:
        super().__init__()
        self.register_buffer("omega", omega)

    def forward(self, t_B: Tensor) -> Tensor:
        angles = t_B.unsqueeze(-1) * self.omega
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def linear() -> nn.Module:
    """Learned (the paper's choice)."""
    return Linear()


def sinusoidal() -> nn.Module:
    """Geometric frequencies from 1000 to 0.1 (Ho et al. 2020)."""
    half = CHANNELS // 2
    return _Waves(SINUSOIDAL_SCALE * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half))


def fourier() -> nn.Module:
    """Random Fourier features: 2 pi b t, b normal, drawn once and kept in the checkpoint (Tancik et al. 2020)."""
    return _Waves(2 * math.pi * FOURIER_SIGMA * torch.randn(CHANNELS // 2))


ENCODINGS: dict[str, Callable[[], nn.Module]] = {"linear": linear, "sinusoidal": sinusoidal, "fourier": fourier}


def make(name: str) -> nn.Module:
    """(B,) -> (B,E). Raises ValueError listing the valid names."""
    if name not in ENCODINGS:
        raise ValueError(f"alignment.t_encoding {name!r} does not exist; choose from {', '.join(ENCODINGS)}")
    return ENCODINGS[name]()
