"""The linear interpolant, and the one place that says which way time runs: t in [0, 1], t = 0 is data, t = 1 is NOISE.

    x_t = (1 - t) x_0 + t eps,    velocity v = d x_t / dt = eps - x_0,    logSNR(t) = 2 log((1 - t) / t)

Official SiT runs the other way; REPA, iREPA, SRA and REG agree with us (Ma et al. 2024; Yu et al. 2025).
Shapes: x, noise (B,C,H,W), or (B,C) of a class token; t (B,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

TIME_CONVENTION = "t=1 is noise"


def interpolate(x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t eps."""
    t = t_B.view(-1, *[1] * (x0_BCHW.ndim - 1))
    return (1 - t) * x0_BCHW + t * noise_BCHW


def velocity(x0_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    """The regression target eps - x_0; the same at every t."""
    return noise_BCHW - x0_BCHW


def velocity_loss(predicted_BCHW: Tensor, velocity_BCHW: Tensor) -> Tensor:
    """(B,) float32: mean squared error over channels and positions."""
    return (predicted_BCHW.float() - velocity_BCHW).square().flatten(1).mean(1)


def log_snr(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """2 log((1 - t) / t); +inf at t = 0 and -inf at t = 1."""
    with np.errstate(divide="ignore"):
        return 2 * (np.log1p(-t) - np.log(t))
