"""Euler's method for the probability-flow ODE on equal steps of t (REPA's `euler_sampler`): first order, one evaluation a step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor

from gsnr.train.samplers import Noise, Velocity

STEPS = 250
TOGETHER = 1


def evaluations(steps: int) -> int:
    return steps


def integrate(velocity: Velocity, x_BCHW: Tensor, steps: int, noise: Noise) -> Tensor:
    x = x_BCHW
    for t, s in pairwise(np.linspace(1.0, 0.0, steps + 1).tolist()):
        x = x + (s - t) * velocity(x, t)
    return x
