"""Samplers: noise -> latents, by the velocity of a model. One file each, found by name; a file has

integrate(velocity, x_BCHW, steps, noise)   x at t = 1, standard normal in float64 -> x at t = 0, in float64
evaluations(steps)                          of the velocity; None where the solver decides
STEPS = 250                                 where nobody says how many; None where there is no such number
TOGETHER = 1                                samples whose steps are chosen together; 1: a sample's steps are its own

velocity(x_BCHW, t) is v = dx/dt in float64, t a Python float; time runs as in `gsnr.train.interpolant`, from t = 1 (noise) to t = 0 (data).
noise(k) is the standard normal (B,C,H,W) of step k, counted from 1; samplers of the ODE leave it alone.

A model with a class token (REG) has a pair for its state: latents and class tokens, (B,E). A sampler's file sees both as one x, (B,C*H*W+E,1,1): same
steps, same diffusion, for every sampler; dopri5's error is that of all together.

Shapes: B samples, latent (C,H,W), class token (E,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr import plugins
from gsnr.train.data import rng

State = Tensor | tuple[Tensor, Tensor]  # latents; and class tokens, of a model that has them
Velocity = Callable[[Any, float], Any]  # of a State, and like it
Noise = Callable[[int], Any]  # a State of each step


def noise_of(
    seed: int, numbers_B: NDArray[np.int64], shape: tuple[int, int, int], device: str | torch.device = "cpu", extra: int | None = None
) -> Noise:
    """Noise that is a function of (seed, sample's number, step) alone, float32; that of step 0 is where a sample starts. extra: E of a class token;
    the latents' noise is the same with it and without."""

    def normal(stream: str, step: int, of: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(rng.normals(seed, stream, numbers_B, step, of)).to(device)

    if extra is None:
        return lambda step: normal("sample", step, shape)
    return lambda step: (normal("sample", step, shape), normal("sample_extra", step, (extra,)))


def latents_of(state: State) -> Tensor:
    """Without the class tokens."""
    return state[0] if isinstance(state, tuple) else state


def _packed(state: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([state[0].flatten(1), state[1]], dim=1)[..., None, None]


def _unpacked(x_BF11: Tensor, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    latents, extra = x_BF11[..., 0, 0].split([like[0][0].numel(), like[1].shape[1]], dim=1)
    return latents.view_as(like[0]), extra


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
def integrate(name: str, velocity: Velocity, start: State, steps: int | None = None, noise: Noise | None = None) -> Any:
    """The final State, float64: latents (B,C,H,W), or a pair with class tokens, as `start` is, which is standard normal, of any dtype: x at t = 1.
    noise: of the steps of an SDE.

    Raises ValueError for an unknown sampler, for one that draws noise and is given none, and for a solver that finds no step."""
    module, count = plugins.find("samplers", name), steps or steps_of(name)

    def none(step: int) -> Any:
        raise ValueError(f"sampler {name!r} draws noise in every step: give it a source, `noise`")

    drawn = noise or none
    if not isinstance(start, tuple):
        return module.integrate(velocity, start.double(), count, drawn)

    def of_both(x: Tensor, t: float) -> Tensor:
        return _packed(velocity(_unpacked(x, start), t))

    return _unpacked(module.integrate(of_both, _packed(start).double(), count, lambda step: _packed(drawn(step))), start)
