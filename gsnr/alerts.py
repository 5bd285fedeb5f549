"""What a monitor warns of: a signal that has gone, a balance that has tipped, one sample that decides, and gradients that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gsnr.balance import LIMIT, Balance
from gsnr.batches import Batch
from gsnr.engines import Loss
from gsnr.estimates import LARGE_SHARE, Estimate
from gsnr.surroundings import undisturbed

CHECKS = 3  # in a row below detection before it is worth a word


class Fading:
    """Counts, name by name, the checks in a row in which a signal was below detection in every bin."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def see(self, estimates: Mapping[str, Sequence[Estimate]]) -> list[str]:
        """estimates: loss -> those of its bins. What is to be said of them."""
        for name, own in estimates.items():
            self.counts[name] = self.counts.get(name, 0) + 1 if all(e.below_detection for e in own) else 0
        return [f"{name}: below detection in the last {self.counts[name]} checks" for name in estimates if self.counts[name] >= CHECKS]


def heavy(estimates: Mapping[str, Sequence[Estimate]]) -> list[str]:
    """Losses of which one sample holds more than 30 % of the jackknife variance in some bin."""
    worst = {name: max((e.largest_share for e in own if e.has_interval), default=0.0) for name, own in estimates.items()}
    return [f"{name}: one sample holds {share:.0%} of the jackknife variance" for name, share in worst.items() if share > LARGE_SHARE]


def tipped(balances: Mapping[str, Balance]) -> list[str]:
    """Pairs whose rho lies below -0.5, interval and all."""
    return [f"{name}: {b}, below -{LIMIT:g}: held back by the other loss" for name, b in balances.items() if b.ci()[1] < -LIMIT]


def training_gradient(model: nn.Module) -> list[str]:
    """Of the gradients that the training has left in the parameters, the last in the model's order that is not finite."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    return [f"the training's gradient of {bad[-1]} is not finite ({len(bad)} parameters); once is what a loss scaler does in fp16"] if bad else []


def _first_output(model: nn.Module, found: list[str]) -> list[Any]:
    """Hooks that note the modules without submodules whose output is not finite, in the order of the forward pass."""

    def noting(name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not bool(output.isfinite().all()):
                found.append(name)

        return note

    return [module.register_forward_hook(noting(name)) for name, module in model.named_modules() if not list(module.children())]


def blame(model: nn.Module, loss: Loss, batches: Iterable[Batch], device: torch.device) -> str:
    """Where what is not finite begins: the first module whose output is not, else the last parameter, in the model's order, whose gradient is not."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    outputs: list[str] = []
    hooks = _first_output(model, outputs)
    try:
        with undisturbed(model, device, batches), torch.enable_grad():
            for batch in batches:
                total = loss(model, batch).sum()
                if outputs:
                    return f"first in the output of {outputs[0]}"
                gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
                bad = [name for name, g in zip(named, gradients, strict=True) if g is not None and not bool(g.isfinite().all())]
                if bad:
                    return f"first in the gradient of {bad[-1]}"
    finally:
        for hook in hooks:
            hook.remove()
    return "not found again"
