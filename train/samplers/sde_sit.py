"""Euler-Maruyama for the reverse SDE, as SiT samples it (diffusion form `sigma`, norm 1, last step `Mean` of .04), in SiT's own time r = 1 - t.

    dx = (u + w s) dr + sqrt(2 w) dW,    u = dx/dr = -v,    w = sigma = 1 - r,    s = (r u - x) / (1 - r)

on r = linspace(0, .96, N), whose step is taken as one number throughout; then the mean alone over .04. It is the process of `sde`, written the
other way: from the same noise both give the same latents to rounding. What differs in the projects: SiT keeps its state in float32 (here
float64), and guides the first three latent channels (here `--guide-channels 3`).
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from torch import Tensor

from gsnr.train.samplers import Noise, Velocity

STEPS = 250
TOGETHER = 1
LAST = 0.04  # size of the last step


def evaluations(steps: int) -> int:
    return steps


def integrate(velocity: Velocity, x_BCHW: Tensor, steps: int, noise: Noise) -> Tensor:
    x = x_BCHW
    times = np.linspace(0.0, 1 - LAST, steps).tolist() if steps > 1 else [0.0]
    size = times[1] - times[0] if steps > 1 else 1.0

    def drift(x: Tensor, r: float) -> Tensor:
        u, sigma = -velocity(x, 1 - r), 1 - r
        score = (r * u - x) / sigma
        return u + sigma * score

    for step, r in enumerate(times[:-1], start=1):
        x = x + drift(x, r) * size + sqrt(2 * (1 - r)) * sqrt(size) * noise(step)
    return x + drift(x, times[-1]) * (LAST if steps > 1 else 1.0)
