"""Samplers: noise -> latents, by the velocity of a model. One file each, found by name; a file has

integrate(velocity, x_BCHW, steps, noise)   x at t = 1, standard normal in float64 -> x at t = 0, in float64
evaluations(steps)                          of the velocity; None where the solver decides
STEPS = 250                                 where nobody says how many; None where there is no such number
TOGETHER = 1                                samples whose steps are chosen together; 1: a sample's steps are its own

velocity(x_BCHW, t) is v = dx/dt in float64, t a Python float; time runs as in `gsnr.train.interpolant`, from t = 1 (noise) to t = 0 (data).
noise(k) is the standard normal (B,C,H,W) of step k, counted from 1; samplers of the ODE leave it alone.

Shapes: B samples, latent (C,H,W).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr import plugins
from gsnr.train.data import rng

Velocity = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]


def noise_of(seed: int, numbers_B: NDArray[np.int64], shape: tuple[int, int, int], device: str | torch.device = "cpu") -> Noise:
    """Noise that is a function of (seed, sample's number, step) alone, (B,C,H,W) float32; that of step 0 is where a sample starts."""
    return lambda step: torch.from_numpy(rng.normals(seed, "sample", numbers_B, step, shape)).to(device)


def steps_of(name: str) -> int | None:
    """How many steps sampler `name` takes where nobody says; None where its solver decides. Imports nothing heavy."""
    steps = plugins.constant("samplers", name, "STEPS")
    assert steps is None or isinstance(steps, int)
    return steps


def evaluations(name: str, steps: int | None = None) -> int | None:
    """Of the velocity, for a sample; None where the solver decides. Raises ValueError for an unknown sampler."""
    found: int | None = plugins.find("samplers", name).evaluations(steps or steps_of(name))
    return found


@torch.no_grad()
def integrate(name: str, velocity: Velocity, noise_BCHW: Tensor, steps: int | None = None, noise: Noise | None = None) -> Tensor:
    """Final latents (B,C,H,W) float64. noise_BCHW: standard normal, of any dtype, x at t = 1. noise: of the steps of an SDE.

    Raises ValueError for an unknown sampler, for one that draws noise and is given none, and for a solver that finds no step."""
    module = plugins.find("samplers", name)

    def none(step: int) -> Tensor:
        raise ValueError(f"sampler {name!r} draws noise in every step: give it a source, `noise`")

    x: Tensor = module.integrate(velocity, noise_BCHW.double(), steps or steps_of(name), noise or none)
    return x
