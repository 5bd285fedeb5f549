"""Dormand and Prince's pair of orders 5 and 4 for the probability-flow ODE, by torchdiffeq, with SiT's tolerances.

The steps are those that the samples of a batch need on average (root mean square of the error over all of them), as in SiT: so a sample's last
digits, below the tolerance, depend on the samples beside it. `gsnr sample` therefore solves fixed blocks of TOGETHER consecutive samples. One
step ends at t = 0: SiT lets the solver step past the end and interpolates, which asks the model for times that it was not trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsnr.train.samplers import Noise, Velocity

STEPS = None
TOGETHER = 32
ABSOLUTE, RELATIVE = 1e-6, 1e-3


def evaluations(steps: int | None) -> None:
    return None


def integrate(velocity: Velocity, x_BCHW: Tensor, steps: int | None, noise: Noise) -> Tensor:
    from torchdiffeq import odeint

    times = torch.tensor([1.0, 0.0], dtype=torch.float64, device=x_BCHW.device)
    try:
        x: Tensor = odeint(
            lambda t, x: velocity(x, float(t)), x_BCHW, times, method="dopri5", atol=ABSOLUTE, rtol=RELATIVE, options={"step_t": times[1:]}
        )[-1]
    except AssertionError as error:  # how it says that values are not finite, or a step too small
        raise ValueError(f"sampler 'dopri5': finds no step ({str(error).splitlines()[0][:80]})") from error
    return x
