"""The contract of a sampler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gsnr import plugins
from gsnr.plugins import hold
from gsnr.train import samplers
from gsnr.train.contracts.problem import alike

MEAN, STD = 0.5, 0.7  # of the data
SHAPE, SAMPLES, STEPS = (4, 16, 16), 16, 200
NEAR = 0.03  # five standard errors of the mean and of the standard deviation, and what 200 steps leave


def velocity(x: Tensor, t: float) -> Tensor:
    """E[eps - x_0 | x_t = x] for x_0 ~ N(MEAN, STD^2)."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that sampler `name` breaks; what was checked otherwise."""
    module = plugins.find("samplers", name)
    together, default = (plugins.constant("samplers", name, constant) for constant in ("TOGETHER", "STEPS"))
    hold(isinstance(together, int) and together >= 1, name, "has no TOGETHER = 1 (or more) at its top")
    hold(default is None or isinstance(default, int), name, "its STEPS is neither a number nor None")
    numbers = np.arange(SAMPLES)
    seen = []

    def counted(x: Tensor, t: float) -> Tensor:
        seen.append(t)
        return velocity(x, t)

    def sampled(rows: slice) -> Tensor:
        noise = samplers.noise_of(0, numbers[rows], SHAPE)
        return samplers.integrate(name, counted, noise(0), STEPS, noise)

    x = sampled(slice(None))
    expected = module.evaluations(STEPS)
    hold(expected in (None, len(seen)), name, f"evaluates the velocity {len(seen)} times, not the {expected} that evaluations says")
    hold(all(0 <= t <= 1 for t in seen), name, f"asks for the velocity outside 0 <= t <= 1, at {min(seen)} to {max(seen)}")
    hold(x.shape == (SAMPLES, *SHAPE) and x.dtype == torch.float64, name, f"gives {tuple(x.shape)}, {x.dtype}, for {(SAMPLES, *SHAPE)} in float64")
    mean, std = float(x.mean()), float(x.std())
    hold(abs(mean - MEAN) < NEAR and abs(std - STD) < NEAR, name, f"data of mean {MEAN} and deviation {STD} come out with {mean:.3f} and {std:.3f}")
    hold(torch.equal(sampled(slice(None)), x), name, "the same noise gives two samples; draw from `noise` alone")
    hold(together != 1 or alike(sampled(slice(1, 3)), x[1:3]), name, "a sample depends on those beside it; say how many go together, TOGETHER")
    return [
        f"latents: float64 to float64, of normal data the mean to {NEAR} and the deviation to {NEAR}",
        "times: all within 0 and 1" + (f"; {expected} evaluations for {STEPS} steps" if expected else "; the solver decides on the steps"),
        "a function of its noise; " + ("a sample's is its own" if together == 1 else f"{together} samples go together"),
    ]
