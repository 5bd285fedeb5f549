"""The callback of `--gsnr-every K`: the gradient signal-to-noise ratio on held-out images, one line a step, loss, group and bin in RUN/gsnr.jsonl.

Of an aligned run also the balance of the two losses' gradients of the backbone (`gsnr.balance`), one line a step and bin in RUN/balance.jsonl; the
weight of the alignment is that of its schedule in the bin, over that of the velocity loss. The images, their times and noise are the same at every
step and whatever the world size; training is the same, bit for bit, with it or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

import gsnr
from gsnr import logs as runlog
from gsnr.balance import Balance, balance
from gsnr.train import parameter_groups
from gsnr.train.alignments import COUPLED, AlignmentModule
from gsnr.train.config import TrainConfig
from gsnr.train.data.batches import Batch, as_views
from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.models.backbone import Backbone
from gsnr.train.objective import Objective
from gsnr.train.parameter_groups import BACKBONE
from gsnr.train.schedules import WeightSchedule
from gsnr.train.schedules._measured import Reading

LOG, BALANCE = "gsnr.jsonl", "balance.jsonl"
PAIR = ("align", "velocity")


def group_of(name: str) -> tuple[str, ...]:
    """Groups of a parameter of an Objective: those of the backbone; "projector", "router", and "alignment" for what is neither."""
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
    """Measures the losses of an objective after every `config.gsnr_every` steps (0: never); every rank has to call it with every step.

    schedules: of the losses, by their names."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        objective: Objective,
        ema: Backbone,
        heldout: Split,
        accelerator: Accelerator,
        schedules: Mapping[str, WeightSchedule],
    ) -> None:
        self.out = out if accelerator.is_main_process else None
        self.alignment, self.schedules, self.accelerator = objective.alignment, schedules, accelerator
        self.monitor: gsnr.Monitor | None = None
        if not config.gsnr_every:
            return
        edges = [k / config.gsnr_bins for k in range(config.gsnr_bins + 1)]
        self.bins = {str(k): _Bin(low, high) for k, (low, high) in enumerate(pairwise(edges))}
        held = partial(_held, config, heldout, objective.alignment, ema, accelerator)
        aligned = bool(objective.alignment.taps)
        self.monitor = gsnr.Monitor(
            objective,
            {name: partial(_named, name) for name in objective.losses},
            {name: held(own) for name, own in self.bins.items()},
            every=config.gsnr_every,
            compare=[PAIR] if aligned else [],
            common=lambda whole, batch: whole(batch),
            weight=self._weight,
            group=BACKBONE,
            groups=group_of,
            index="image",
        )

    def __call__(self, step: int) -> list[tuple[Reading, Balance]]:
        """What was measured of the alignment, bin by bin; [] between measurements, and where there is none."""
        if self.monitor is None:
            return []
        before, results = self.monitor.measurements, self.monitor(step)
        if self.monitor.measurements == before:
            return []
        for name, result in results.items():
            loss, _, own = name.partition("/")
            for group in result.groups if self.out else ():
                assert self.out is not None
                runlog.append(self.out / LOG, {"step": step, "loss": loss} | self.bins[own].where(len(self.bins)) | _numbers(result, group))
        for alert in self.monitor.alerts:
            self.accelerator.print(f"\nstep {step}: {alert}")
        found = [self._read(step, name.partition("/")[2], groups[BACKBONE]) for name, groups in self.monitor.compared.items()]
        return found if len(found) == len(self.bins) else []

    def _read(self, step: int, name: str, c: gsnr.Comparison) -> tuple[Reading, Balance]:
        """Of one bin; the main process logs it."""
        where, weight = self.bins[name], self._weight(step, name)
        own = balance([c], [weight])
        if self.out:
            line = {"step": step, "bin": int(name), "t_low": where.low, "t_high": where.high, "weight": weight, "gsnr": c.a.gsnr}
            runlog.append(self.out / BALANCE, line | own.line())
        return Reading(low=where.low, high=where.high, gsnr=c.a.gsnr, inner=c.inner, inner_se=own.inner_var**0.5), own

    def _weight(self, step: int, name: str) -> float:
        """lambda of the alignment in a bin, in the next step; 0 where the velocity loss has no weight there."""
        t = self.bins[name].middles()
        align, velocity = (self.schedules[loss].weight(step + 1, t).double().mean().item() for loss in PAIR)
        return self.alignment.weight * align / velocity if velocity > 0 else 0.0

    @property
    def cost(self) -> str | None:
        """The last verdict, and what measuring cost, in words; None where it is off."""
        return self.monitor.verdict() if self.monitor else None


@dataclass(frozen=True)
class _Bin:
    low: float
    high: float

    def middles(self) -> Tensor:
        """(64,) times of the bin."""
        return self.low + (self.high - self.low) * (torch.arange(64) + 0.5) / 64

    def where(self, bins: int) -> dict[str, float]:
        """What a line of the log says of it: nothing where it is all of t."""
        return {"t_low": self.low, "t_high": self.high} if bins > 1 else {}


def _held(config: TrainConfig, heldout: Split, alignment: AlignmentModule, ema: Backbone, accelerator: Accelerator, own: _Bin) -> _Prepared:
    """This process's held-out batches of a bin."""
    rank, world = accelerator.process_index, accelerator.num_processes
    size, views = min(64, -(-config.gsnr_images // world)), alignment.views
    columns = tuple(dict.fromkeys((*alignment.columns, *config.model.reads)))
    batches = heldout_batches(heldout, config.gsnr_images, config.seed, "heldout", own.low, own.high, columns, size * views, views)
    indexed = (batch | {"image": torch.from_numpy(index)} for index, batch in list(batches)[rank::world])
    ready = [_ready(as_views(batch, views), accelerator.device) for batch in indexed]
    return _Prepared(ready, alignment, ema)


@dataclass(frozen=True)
class _Prepared:
    """Batches with what the alignment reads of the moving average as it is at the time."""

    batches: list[Batch]
    alignment: AlignmentModule
    ema: Backbone

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            with torch.no_grad():
                yield self.alignment.prepare(batch, self.ema)


def _named(name: str, _: torch.nn.Module, __: Batch, losses: Mapping[str, Tensor]) -> Tensor:
    value = losses[name]
    return value.mean(1) if value.dim() > 1 else value


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
