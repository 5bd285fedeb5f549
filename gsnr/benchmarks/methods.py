"""The methods that `gsnr bench` compares, each as one callable on batches, and what one call of it takes in time and memory."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gsnr
from gsnr.batches import Batch, double, rows
from gsnr.benchmarks import clock, peers
from gsnr.benchmarks.subjects import Subject
from gsnr.engines import Loss
from gsnr.estimates import Array

STEP = "step"  # the ordinary training step that all others are compared with
OURS: dict[str, dict[str, Any]] = {
    "loop": {"engine": "loop", "interval": False},
    "vmap": {"engine": "vmap", "interval": False},
    "vmap-interval": {"engine": "vmap", "interval": True},
    "ghost": {"engine": "ghost", "interval": False},
    "ghost-interval": {"engine": "ghost", "interval": True},
    "ghost-two-pass": {"engine": "ghost", "interval": True, "memory_bytes": 0},
}
METHODS = (*OURS, *peers.PEERS)
Measured = tuple[Array, list[Tensor]]  # q_n = ||g_i||^2 in float64; S per parameter (ours: ||S||)
Method = Callable[[list[Batch]], Measured]


def _taken(model: nn.Module) -> list[Tensor]:
    """Every .grad, taken away from its parameter."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return gradients


def _step(model: nn.Module, loss: Loss, batches: list[Batch]) -> Measured:
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss(model, batch).mean().backward()
    return np.empty(0), _taken(model)


def _ours(options: dict[str, Any], subject: Subject, batches: list[Batch]) -> Measured:
    estimate = gsnr.measure(subject.model, subject.loss, batches, **options)["all"]
    return estimate.q_n, [torch.tensor(estimate.sum_sq, dtype=torch.float64).sqrt()]


def _peer(model: nn.Module, one: peers.One, batches: list[Batch]) -> Measured:
    """S is that of the last batch: a peer's user adds up what an optimiser would."""
    q_n = []
    for batch in batches:
        model.zero_grad(set_to_none=True)
        q_n.append(one(batch).detach())
    return torch.cat(q_n).double().cpu().numpy(), _taken(model)


def prepare(name: str, subject: Subject) -> Method:
    """The method, ready to run on the subject; a peer gets a copy of the model of its own."""
    if name == STEP:
        return partial(_step, subject.model, subject.loss)
    if name in OURS:
        return partial(_ours, OURS[name], subject)
    model = copy.deepcopy(subject.model)
    return partial(_peer, model, peers.PEERS[name](model, subject.loss))


def reference(subject: Subject) -> tuple[Array, float]:
    """||g_i||^2 of the first batch and ||S||^2, by the loop in float64."""
    exact = copy.deepcopy(subject.model).double()
    estimate = gsnr.measure(exact, subject.loss, [double(subject.batches[0])], engine="loop", interval=False)["all"]
    return estimate.q_n, estimate.sum_sq


def errors(method: Method, subject: Subject, truth: tuple[Array, float]) -> tuple[float, float]:
    """Greatest relative error of ||g_i||^2 on the first batch, and that of ||S||^2."""
    q_n, sums = method(subject.batches[:1])
    sum_sq = sum(float(s.double().square().sum()) for s in sums)
    return float(np.max(np.abs(q_n / truth[0] - 1))), abs(sum_sq / truth[1] - 1)


def seconds(method: Method, batches: list[Batch], repeats: int = 1) -> float:
    """Wall-clock time of one call, the mean of `repeats`."""
    return clock.seconds(lambda: [method(batches) for _ in range(repeats)]) / repeats


def _high_water_bytes() -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_bytes(work: Callable[[], object]) -> int:
    """Greatest memory during work() above that before it. On a CPU: of the resident set, which needs Linux (OSError elsewhere)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark VmHWM falls to what is resident now: proc_pid_clear_refs(5)
    before = _high_water_bytes()
    work()
    return _high_water_bytes() - before


def memory_of(name: str, subject: Subject) -> int:
    """`peak_bytes` of the method on all batches, once two samples have loaded libraries and started threads."""
    method = prepare(name, subject)
    method([rows(subject.batches[0], 0, 2)])
    return peak_bytes(lambda: method(subject.batches))
