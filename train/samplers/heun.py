"""Heun's method for the probability-flow ODE on equal steps of t: second order, two evaluations a step, one in the last (as in EDM and REPA)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor

from gsnr.train.samplers import Noise, Velocity

STEPS = 50
TOGETHER = 1


def evaluations(steps: int) -> int:
    return 2 * steps - 1


def integrate(velocity: Velocity, x_BCHW: Tensor, steps: int, noise: Noise) -> Tensor:
    x = x_BCHW
    for t, s in pairwise(np.linspace(1.0, 0.0, steps + 1).tolist()):
        slope = velocity(x, t)
        moved = x + (s - t) * slope
        x = moved if s == 0 else x + (s - t) * 0.5 * (slope + velocity(moved, s))
    return x
