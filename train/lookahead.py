"""A router that learns what denoising gains from its mixture, one step ahead (ours; AHPA's learns by its own alignment loss).

Legend: theta weights of the backbone, phi of the router; g_d = grad_theta L_d on one half of a batch, g_a(phi) = grad_theta L_align on the other.

A step of the best size along -g_a lowers L_d, to first order in a model of unit curvature, by (g_d . g_a)^2 / (2 |g_a|^2), so phi ascends

    J(phi) = g_d . g_a / (|g_d| |g_a|),       grad_phi J = grad_phi (u . g_a(phi)) / (|g_d| |g_a|)   at fixed   u = g_d - (g_d . g_a / |g_a|^2) g_a

which is a derivative along u of grad_phi L_align: a central difference, so nothing is differentiated twice. Without the division by |g_a| the
objective would be linear in the groups' weights, and its best mixture always a single group.

One look is hardly more than noise. So looks are averaged exponentially, and the router takes a step, by AdamW along the average, only after a look
at which the average is resolved: where its square norm is more than four times the variance that noise leaves in it, that is, two standard errors
where the noise has a single direction, and more where it has several.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from gsnr.train.data.batches import Batch

REACH = 1e-3  # of the central difference: the length of the step along u over that of theta
LEAST = 10  # looks before the router first moves: of fewer, the spread says little
RESOLVED = 4.0  # square norm of the average over the variance that noise leaves in it


class Lookahead(nn.Module):
    """Averages of looks at a router's gradient. mean, square: (P,) of grad_phi J and its squares, parameters end to end; looks: how many.

    every: steps between looks; average: decay of the averages, a look. Buffers, so a checkpoint keeps them."""

    mean: Tensor
    square: Tensor
    looks: Tensor

    def __init__(self, router: nn.Module, every: int, average: float) -> None:
        super().__init__()
        size = sum(p.numel() for p in router.parameters())
        self.every, self.average = every, average
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.zeros(size))
        self.register_buffer("looks", torch.zeros((), dtype=torch.int64))

    def add(self, slope_P: Tensor) -> None:
        """Takes in one look."""
        self.looks += 1
        for held, new in ((self.mean, slope_P), (self.square, slope_P.square())):
            held.mul_(self.average).add_(new, alpha=1 - self.average)

    def averaged(self) -> tuple[Tensor, float]:
        """(P,) the mean of the looks, and its square norm over the variance that noise leaves in it; NaN for a single look."""
        unseen = self.average ** int(self.looks)
        mean_P, square_P = (held.double() / (1 - unseen) for held in (self.mean, self.square))
        kept = (1 - self.average) / (1 + self.average) * (1 + unseen) / (1 - unseen)  # sum of the squared weights of the looks
        noise = (square_P - mean_P.square()).clamp_min(0).sum() * kept / (1 - kept) if kept < 1 else torch.tensor(math.nan)
        return mean_P.float(), float(mean_P.square().sum() / noise)

    def resolved(self) -> bool:
        """Whether the mean of the looks is more than their noise."""
        return int(self.looks) >= LEAST and self.averaged()[1] > RESOLVED


def slope(objective: nn.Module, router: nn.Module, batch: Batch) -> Tensor:
    """(P,) grad_phi J of one batch, whose first half is for denoising and whose second for the alignment; 0 where either gradient is. Raises
    ValueError for a batch of one sample."""
    half = len(batch["t"]) // 2
    if not half:
        raise ValueError("alignment.router_objective lookahead: needs at least 2 samples a process and micro-batch")
    first, second = ({key: x[part] for key, x in batch.items()} for part in (slice(half), slice(half, None)))
    theta = {name: p for name, p in objective.named_parameters() if name.startswith("model.")}
    d = _gradient(objective(first)["velocity"].mean(), theta)
    a = _gradient(objective(second)["align"].mean(), theta)
    d_sq, a_sq, along = (sum((float((x[name] * y[name]).sum()) for name in theta), 0.0) for x, y in ((d, d), (a, a), (d, a)))
    phi = list(router.parameters())
    if not (d_sq > 0 and a_sq > 0):
        return torch.zeros(sum(p.numel() for p in phi), device=phi[0].device)
    u = {name: d[name] - along / a_sq * a[name] for name in theta}
    length, size = (math.sqrt(sum(float(x.detach().square().sum()) for x in of.values())) for of in (u, theta))
    step = REACH * size / length if length else 0.0
    ends = []
    for sign in (1.0, -1.0):
        moved = {name: p.detach() + sign * step * u[name] for name, p in theta.items()}
        loss = functional_call(objective, moved, (second,))["align"].mean()
        ends.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, phi)]))
    return (ends[0] - ends[1]) / (2 * step * math.sqrt(d_sq * a_sq)) if step else torch.zeros_like(ends[0])


def _gradient(loss: Tensor, theta: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(theta.items(), found, strict=True)}


def look(ahead: Lookahead, accelerator: Accelerator, objective: Any, router: nn.Module, batch: Batch, step: int) -> None:
    """After backward, in every process: takes a look where the step is one for it, and leaves the router a gradient where the average is resolved."""
    if step % ahead.every:
        return
    with accelerator.autocast():
        ahead.add(accelerator.reduce(slope(objective, router, batch).detach(), "mean"))
    if ahead.resolved():
        mean_P, place = ahead.averaged()[0], 0
        for p in router.parameters():
            p.grad = -mean_P[place : place + p.numel()].view_as(p).to(p.dtype)
            place += p.numel()
