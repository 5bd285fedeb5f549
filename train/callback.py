"""The callback of `--gsnr-every K`: the gradient signal-to-noise ratio on held-out images, one line a step, loss and group in RUN/gsnr.jsonl.

The images, their times and noise are the same at every step and whatever the world size; training is the same, bit for bit, with it or without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

import gsnr
from gsnr.train import parameter_groups
from gsnr.train.alignments import COUPLED, AlignmentModule
from gsnr.train.config import TrainConfig
from gsnr.train.data.batches import Batch, as_views
from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective
from gsnr.train.runs import logs as runlog

LOG = "gsnr.jsonl"


def group_of(name: str) -> tuple[str, ...]:
    """Groups of a parameter of an Objective: those of the SiT; "projector", "router", and "alignment" for what is neither."""
    part, _, rest = name.partition(".")
    if part == "alignment":
        return (next((name for name in rest.split(".") if name in ("projector", "router")), "alignment"),)
    return parameter_groups.groups_of(rest)


def check_images(config: TrainConfig, heldout: Split) -> None:
    """Raises ValueError where there are not enough held-out images."""
    if config.gsnr_every and config.gsnr_images > heldout.size:
        raise ValueError(f"--gsnr-images {config.gsnr_images}: the held-out split of {heldout.header.data!r} has {heldout.size}")


def check_independent(config: TrainConfig, alignment: AlignmentModule) -> None:
    """Raises ValueError where the loss to be measured has no per-sample gradients."""
    if config.gsnr_every and alignment.coupled:
        raise ValueError(f"--gsnr-every: alignment {alignment.name!r} {COUPLED}")


class GsnrCallback:
    """Measures the losses of an objective after every `config.gsnr_every` steps (0: never); every rank has to call it with every step."""

    def __init__(self, config: TrainConfig, out: Path, objective: Objective, ema: SiT, heldout: Split, accelerator: Accelerator) -> None:
        rank, world = accelerator.process_index, accelerator.num_processes
        self.path = out / LOG if rank == 0 else None
        self.monitor: gsnr.Monitor | None = None
        if not config.gsnr_every:
            return
        size = min(64, -(-config.gsnr_images // world))
        views = objective.alignment.views
        columns = tuple(dict.fromkeys((*objective.alignment.columns, *config.model.reads)))
        drawn = heldout_batches(heldout, config.gsnr_images, config.seed, "heldout", 0.0, 1.0, columns, size * views, views)
        batches = list(drawn)[rank::world]
        losses = {name: _loss(name) for name in objective.losses}
        ready = [_ready(as_views(batch | {"image": torch.from_numpy(index)}, views), accelerator.device) for index, batch in batches]
        prepared = _Prepared(ready, objective.alignment, ema)
        self.monitor = gsnr.Monitor(objective, losses, prepared, every=config.gsnr_every, groups=group_of, index="image")

    def __call__(self, step: int) -> None:
        if self.monitor is None:
            return
        for name, result in self.monitor(step).items():
            for group in result.groups if self.path else ():
                assert self.path is not None
                runlog.append(self.path, {"step": step, "loss": name} | _numbers(result, group))

    @property
    def cost(self) -> str | None:
        """What measuring cost, in words; None where it is off."""
        return self.monitor.cost if self.monitor else None


@dataclass(frozen=True)
class _Prepared:
    """Batches with what the alignment reads of the moving average as it is at the time."""

    batches: list[Batch]
    alignment: AlignmentModule
    ema: SiT

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            with torch.no_grad():
                yield self.alignment.prepare(batch, self.ema)


def _loss(name: str) -> Any:
    def loss(objective: torch.nn.Module, batch: Batch) -> Tensor:
        value = objective(batch)[name]
        return value.mean(1) if value.dim() > 1 else value

    return loss


def _ready(batch: Batch, device: torch.device) -> Batch:
    """On the device, no label dropped."""
    moved = {key: x.to(device) for key, x in batch.items()}
    return moved | {"label_drop": torch.zeros(len(moved["t"]), dtype=torch.bool, device=device)}


def _numbers(result: gsnr.Result, group: str) -> dict[str, Any]:
    """One line of the log; what is undefined is null (JSON has no NaN)."""
    e = result[group]
    low, high = e.ci()
    values = {"value": result.loss, "signal": e.signal, "noise": e.noise, "gsnr": e.gsnr, "gsnr_low": low, "gsnr_high": high}
    return {"group": group, "n": e.n, "engine": result.engine} | {key: value if value == value else None for key, value in values.items()}
