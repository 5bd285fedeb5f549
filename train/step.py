"""One step of training: a batch in micro-batches, forward and backward, clipping, AdamW; nothing in it waits for the device.

A step whose gradient is not finite changes neither weights nor optimizer, and is counted. Accumulated over micro-batches, or computed by several
processes, it is the step of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gsnr.train.data.batches import Batch
from gsnr.train.objective import Objective
from gsnr.train.optimizer import hold
from gsnr.train.schedules import WeightSchedule

Metrics = dict[str, Tensor]


class Window:
    """Sums of the steps' metrics since the last line of metrics.jsonl; kept on the device, so that adding to them never waits for it.

    MEANS are sums over steps whose gradient was finite; skipped counts the others, streak how many of them in a row the last steps were, and worst
    the longest streak since the run (or its resumption) began.
    """

    MEANS = ("loss", "velocity", "align", "grad_norm", "class_token")
    SUMS = (*MEANS, "steps", "skipped")
    STREAKS = ("streak", "worst")

    def __init__(self, values: Mapping[str, float | Tensor], device: torch.device) -> None:
        self.device = device
        self.values = {key: torch.as_tensor(values.get(key, 0.0), dtype=torch.float32, device=device) for key in (*self.SUMS, *self.STREAKS)}

    def add(self, metrics: Metrics) -> None:
        v, bad = self.values, metrics["skipped"]
        for key in self.MEANS:
            if key in metrics:
                v[key] = v[key] + torch.where(bad > 0, 0.0, metrics[key].detach())
        v["steps"] = v["steps"] + 1 - bad
        v["skipped"] = v["skipped"] + bad
        v["streak"] = (v["streak"] + bad) * bad
        v["worst"] = torch.maximum(v["worst"], v["streak"])

    def totals(self, accelerator: Accelerator) -> dict[str, float]:
        """The values, averaged over the processes; every process has to call it."""
        stacked = accelerator.reduce(torch.stack(list(self.values.values())), "mean")
        return dict(zip(self.values, stacked.tolist(), strict=True))

    def emptied(self) -> Window:
        """A new window that goes on counting a streak."""
        return Window({key: self.values[key] for key in self.STREAKS}, self.device)


def check_finite(step: int, totals: dict[str, float], most: int) -> None:
    """Raises ValueError where more than `most` steps in a row were skipped."""
    if totals["worst"] > most or math.isnan(totals["worst"]):
        raise ValueError(
            f"the gradient was not finite in {int(totals['worst'])} steps in a row, at or before step {step}; nothing was changed by them, and the "
            "last checkpoint is from before; lower --optim.lr, or use --precision bf16"
        )


def ready(accelerator: Accelerator, batch: Batch, raw: Objective, ema: Objective, aligned: bool = True) -> Batch:
    """A batch on the device; where it is aligned, with what the alignment reads of the moving average."""
    moved = {key: x.to(accelerator.device, non_blocking=True) for key, x in batch.items()}
    if not aligned:
        return moved
    with torch.no_grad(), accelerator.autocast():
        return raw.alignment.prepare(moved, ema.model)


def _micro_batches(batch: Batch, parts: int) -> list[Batch]:
    size = len(batch["t"]) // parts
    return [{key: x[i * size : (i + 1) * size] for key, x in batch.items()} for i in range(parts)]


def _total(losses: Mapping[str, Tensor], t_B: Tensor, weights: Mapping[str, float], schedules: Mapping[str, WeightSchedule], step: int) -> Tensor:
    """The mean velocity loss plus the others' weighted means, each sample of them by its schedule. (One that is 1 changes no bit.) Of K views, t is
    (B,K); a loss of the image then takes the mean weight of its views."""

    def mean(name: str, value: Tensor) -> Tensor:
        if name not in schedules:
            return value.mean()
        w = schedules[name].weight(step, t_B.flatten()).view(t_B.shape)
        return ((w.mean(1) if w.dim() > value.dim() else w) * value).mean()

    means = {name: mean(name, value) for name, value in losses.items()}
    total = means["velocity"]
    for name, weight in weights.items():
        total = total + weight * means[name] if name in means else total
    return total


def optimisation_step(
    accelerator: Accelerator,
    objective: nn.Module,
    raw: Objective,
    ema: Objective,
    optimizer: Any,
    batch: Batch,
    clip: float,
    accumulate: int = 1,
    held: Iterable[nn.Parameter] = (),
    schedules: Mapping[str, WeightSchedule] = MappingProxyType({}),
    step: int = 1,
) -> Metrics:
    """One step; its metrics, still on the device. `raw` is the objective without its distributed wrapper. batch: this process's part, a multiple
    of `accumulate` samples, on any device. held: parameters that this step leaves as they are. schedules: of the losses, by their names.
    Metrics velocity, align and class_token are without their schedules and weights, loss with them."""
    optimizer.zero_grad(set_to_none=True)
    parts = _micro_batches(batch, accumulate)
    sums: Metrics = {}
    aligned = "align" not in schedules or not schedules["align"].over(step)
    for i, part in enumerate(parts):
        with accelerator.no_sync(objective) if i < len(parts) - 1 else nullcontext():
            ours = ready(accelerator, part, raw, ema, aligned)
            each = objective(ours, aligned, step)
            losses = {name: value.mean() / accumulate for name, value in each.items()}
            losses["loss"] = _total(each, ours["t"], raw.weights, schedules, step) / accumulate
            accelerator.backward(losses["loss"])
        sums = {name: sums.get(name, 0.0) + value.detach() for name, value in losses.items()}
    hold(held)
    norm = accelerator.clip_grad_norm_(raw.parameters(), clip)
    if aligned:
        raw.alignment.guide(accelerator, raw, ours, step)
    bad = (~torch.isfinite(norm)).to(norm.dtype)
    if accelerator.scaler is None:  # the fused kernel leaves everything as it is where found_inf is 1; fp16's scaler sees to it itself
        optimizer.optimizer.grad_scale, optimizer.optimizer.found_inf = None, bad.float()
    optimizer.step()
    return sums | {"grad_norm": norm, "skipped": bad}
