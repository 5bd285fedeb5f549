"""Engines: ways to get exact per-sample gradients. One file each, each with one function

    per_sample(model, loss, batch, selected, visit) -> losses_C

It calls `visit(name, gradients)` once for every name in `selected`, with the `gsnr.gradients.PerSample` of that parameter (a `Zero` where
the loss does not touch it), as soon as they are known, and returns the C detached losses. Nothing is left behind: no .grad, no hook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from gsnr.batches import Batch
from gsnr.gradients import PerSample
from gsnr.memory import memory_of_process

Loss = Callable[[nn.Module, Batch], Tensor]
Visit = Callable[[str, PerSample], None]
Engine = Callable[[nn.Module, Loss, Batch, dict[str, nn.Parameter], Visit], Tensor]
Common = Callable[[nn.Module, Batch], Any]

ENGINES = ("loop", "vmap", "ghost")
AUTO = ("ghost", "vmap", "loop")  # the order in which "auto" tries them


@dataclass(frozen=True)
class Losses:
    """What is measured together. With `common`, each is loss(model, batch, common(model, batch)), and the common part is computed once for all
    of them by an engine that can (`gsnr.engines.ghost.several`)."""

    each: tuple[Callable[..., Tensor], ...]
    common: Common | None = None

    def alone(self, k: int) -> Loss:
        """The k-th by itself, as loss(model, batch)."""
        loss, common = self.each[k], self.common
        return loss if common is None else lambda model, batch: loss(model, batch, common(model, batch))


class NotCovered(ValueError):
    """An engine cannot measure this model, or measures it wrongly; the message says where. "auto" then takes the next engine."""


def find(name: str) -> Engine:
    """The engine of that name. Raises ValueError listing the valid names."""
    if name not in ENGINES:
        raise ValueError(f"engine {name!r} does not exist; choose from auto, {', '.join(ENGINES)}")
    return import_module(f"gsnr.engines.{name}").per_sample


def default_memory(selected: dict[str, nn.Parameter]) -> int:
    """Bytes that per-sample gradients may take all together: a quarter of what is free on a GPU, of all memory on a CPU."""
    device = next(iter(selected.values())).device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return memory_of_process() // 4


def chunk_within(memory_bytes: int, selected: dict[str, nn.Parameter], limit: int = 32) -> int:
    """How many samples' gradients to hold whole at once: a quarter of the budget, between 1 and `limit` (beyond it speed no longer gains)."""
    per_sample = sum(p.numel() * p.element_size() for p in selected.values())
    return max(1, min(limit, memory_bytes // (4 * per_sample)))


def check_losses(losses: Tensor, b: int) -> Tensor:
    """Passes on a (B,) floating tensor. Raises ValueError for anything else."""
    if not isinstance(losses, torch.Tensor) or losses.shape != (b,):
        got = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(f"the loss must return one value per sample, shape ({b},), not {got}; do not average over the batch")
    if not losses.is_floating_point():
        raise ValueError(f"the loss must be a floating-point tensor, not {losses.dtype}")
    return losses
