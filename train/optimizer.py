"""AdamW over an objective: what learns at which rate, and in which step.

An alignment may ask for another rate of some of its parameters (a router's, say), as a factor on the common one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gsnr.train.config import OptimConfig
from gsnr.train.objective import Objective


def make(objective: Objective, optim: OptimConfig) -> torch.optim.AdamW:
    """One group a rate, each with its "factor"; the common one first."""
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    factors = {p: factor for factor, parameters in objective.alignment.rates.items() for p in parameters}
    for p in objective.parameters():
        groups.setdefault(factors.get(p, 1.0), []).append(p)
    asked: list[dict[str, Any]] = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    return torch.optim.AdamW(asked, lr=optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=optim.weight_decay, fused=True)


def names(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The parameters' names in the order in which the optimizer numbers them."""
    of = {p: name for name, p in objective.named_parameters()}
    return [of[p] for group in optimizer.param_groups for p in group["params"]]


def set_rate(optimizer: Any, optim: OptimConfig, step: int) -> float:
    """Linear warm-up, then constant; each group by its factor. The common rate."""
    lr = optim.lr * min(1.0, step / optim.warmup) if optim.warmup else optim.lr
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    return lr


def hold(parameters: Iterable[nn.Parameter]) -> None:
    """After backward: these do not learn in this step.

    AdamW passes over a parameter without a gradient: its moments and its count of steps stay, and it is no part of the
    gradient's norm. It takes part in backward all the same, as data-parallel training wants of every parameter.
    """
    for p in parameters:
        p.grad = None
