"""Euler-Maruyama for the reverse SDE, as REPA samples it (`euler_maruyama_sampler`): first order in law, one evaluation a step.

    dx = (v - t s) dt + sqrt(2 t) dW,    s = -((1 - t) v + x) / t    the score

on t = linspace(1, .04, N) and then 0. The last step, from .04, takes the mean alone. What it leaves does not vanish as N grows: of data of standard
deviation .7, about .695.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np
from torch import Tensor

from gsnr.train.samplers import Noise, Velocity

STEPS = 250
TOGETHER = 1
LAST = 0.04  # t before the last step


def evaluations(steps: int) -> int:
    return steps


def integrate(velocity: Velocity, x_BCHW: Tensor, steps: int, noise: Noise, last: float = LAST) -> Tensor:
    x = x_BCHW
    times = [*np.linspace(1.0, last, steps).tolist(), 0.0]
    for step, (t, s) in enumerate(pairwise(times), start=1):
        v = velocity(x, t)
        score = -((1 - t) * v + x) / t
        x = x + (v - t * score) * (s - t)
        if step < steps:
            x = x + sqrt(2 * t) * sqrt(t - s) * noise(step)
    return x
