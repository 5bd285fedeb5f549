"""`gsnr.Monitor`: measures the gradient signal-to-noise ratio every K steps of any training loop, and leaves the training as it was.

    monitor = gsnr.Monitor(model, {"loss": loss}, batches, every=500)
    for step in range(1, steps + 1):
        train_one_step()
        for name, result in monitor(step).items():      # empty between measurements
            print(step, name, result["all"].gsnr, result["all"].ci())
    print(monitor.cost)

Random state, gradients, hooks, modes and weights are those of a run without it, so a run with it on is the same run, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gsnr.batches import Batch
from gsnr.engines import Loss
from gsnr.identity import Index
from gsnr.measurement import measure
from gsnr.results import Result
from gsnr.selection import Groups, Parameters
from gsnr.surroundings import FLOAT32


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """Eval mode, and back to each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Monitor:
    """Call it with the step; it returns name -> Result on steps that are multiples of `every`, and {} on others.

    model, batches, engine, parameters, groups and what follows: as in `gsnr.measure`. losses: name -> loss. `batches` should stay the same
    throughout (held-out samples with their own t and noise), so that curves over steps differ by the weights alone;
    pass `index` where they hold what the weights make (features of the moving average), which would else give other signs every time.
    eval_mode   measure in eval mode (default), where dropout and batch norm do not interfere.

    Raises ValueError for `every` < 1 or no losses; measuring raises as `gsnr.measure` does.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: dict[str, Loss],
        batches: Iterable[Batch],
        *,
        every: int,
        engine: str = "auto",
        parameters: Parameters | None = None,
        groups: Groups | None = None,
        interval: bool = True,
        draws: int = 1,
        chunk: int | None = None,
        memory_bytes: int | None = None,
        device: str | torch.device | None = None,
        distributed: bool = True,
        index: Index | None = None,
        precision: str = FLOAT32,
        eval_mode: bool = True,
    ) -> None:
        if every < 1:
            raise ValueError(f"every = {every}: must be at least 1 step")
        if not isinstance(losses, dict) or not losses:
            raise ValueError("a monitor needs at least one loss to measure: name -> loss")
        self.model, self.losses, self.every = model, losses, every
        self.batches = list(batches) if isinstance(batches, Iterator) else batches
        self.eval_mode = eval_mode
        self.options: dict[str, Any] = {"engine": engine, "parameters": parameters, "groups": groups, "interval": interval, "draws": draws}
        self.options |= {"chunk": chunk, "memory_bytes": memory_bytes, "device": device, "distributed": distributed}
        self.options |= {"index": index, "precision": precision}
        self.measurements = 0
        self.seconds = 0.0
        self._started: float | None = None

    def __call__(self, step: int) -> dict[str, Result]:
        started = time.perf_counter()
        self._started = self._started or started
        if step % self.every:
            return {}
        if self.eval_mode:
            with evaluating(self.model):
                results = self._measure()
        else:
            results = self._measure()
        self.measurements += 1
        self.seconds += time.perf_counter() - started
        return results

    def _measure(self) -> dict[str, Result]:
        return {name: measure(self.model, loss, self.batches, **self.options) for name, loss in self.losses.items()}

    @property
    def share(self) -> float:
        """Fraction of the time since the first call that went into measuring."""
        elapsed = time.perf_counter() - self._started if self._started is not None else 0.0
        return self.seconds / elapsed if elapsed else 0.0

    @property
    def cost(self) -> str:
        """What it cost so far, in words."""
        if not self.measurements:
            return "no measurement yet"
        each = self.seconds / self.measurements
        return f"{self.measurements} measurements of {each:.2f} s each, {100 * self.share:.1f} % of the time"
