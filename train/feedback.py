"""What a training learns about itself while it runs: weights of schedules that are measured, and when the alignment is released.

Every process sees the same numbers, and the main process decides for all. What is remembered is kept in state.json of a checkpoint, so that a
resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from gsnr.balance import Balance
from gsnr.stopping import BALANCES, DIFFERENCES, LOSSES, Check, Memory, StopRule, make_rule
from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import TrainConfig
from gsnr.train.schedules import ScheduleConfig, WeightSchedule, make_schedule
from gsnr.train.schedules._measured import MeasuredSchedule, Reading

Measured = tuple[Reading, Balance]  # of one bin of t


class Releasing(WeightSchedule):
    """A schedule, times 1 until a release, and then down to 0 by half a cosine in `ramp` steps."""

    def __init__(self, schedule: WeightSchedule, ramp: int) -> None:
        super().__init__(ScheduleConfig())
        self.schedule, self.ramp, self.last = schedule, ramp, schedule.last
        self.released: int | None = None

    def release(self, step: int) -> None:
        """`step` is the last with the whole weight."""
        self.released = step
        end = step + max(0, self.ramp - 1)
        self.last = end if self.schedule.last is None else min(end, self.schedule.last)

    def weight(self, step: int, t_B: Tensor) -> Tensor:
        weight_B = self.schedule.weight(step, t_B)
        if self.released is None or step <= self.released:
            return weight_B
        if self.over(step):
            return torch.zeros_like(weight_B)
        return weight_B * ((1 + math.cos(math.pi * (step - self.released) / self.ramp)) / 2)


class Feedback:
    """schedules: loss of an objective -> its schedule, as they are now. Raises ValueError for a rule, or a schedule, that lacks its measurements."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        checks = config.steps // config.gsnr_every + 1 if config.gsnr_every else 0
        self.accelerator, self.rule = accelerator, make_rule(config.stop_rule, checks)
        align = make_schedule(config.schedule)
        self.measured = align if isinstance(align, MeasuredSchedule) else None
        _check(config, self.rule, self.measured)
        self.align = Releasing(align, config.stop_rule["ramp"]) if config.stop_rule["name"] != "none" else align
        self.schedules = {"align": self.align, "velocity": make_schedule(config.velocity_schedule, "velocity_schedule")}
        self.sums = torch.zeros(2, dtype=torch.float64 if accelerator.device.type == "cpu" else torch.float32, device=accelerator.device)

    @property
    def last(self) -> int | None:
        """The last step of the alignment, as far as is known; as `WeightSchedule.last`."""
        return self.align.last

    def after(self, step: int, metrics: Mapping[str, Tensor], measured: Sequence[Measured]) -> bool:
        """To be called after every step, by every process; True where this is the step that releases. measured: by the callback, [] between."""
        if self.measured is not None:
            self.measured.observe([reading for reading, _ in measured])
        if not step or not isinstance(self.align, Releasing) or self.align.released is not None or self.align.over(step + 1):
            return False
        if self.rule.reads == LOSSES:
            good = 1 - metrics["skipped"]
            self.sums += torch.stack([torch.where(good > 0, metrics["align"], 0.0), good]).to(self.sums)
        check = self._check_after(step, measured)
        if check is None:
            return False
        self.rule.see(check)
        if self.accelerator.num_processes > 1:
            self._remember(broadcast_object_list([asdict(self.rule.memory)])[0])
        if self.rule.memory.released is None:
            return False
        self.align.release(step)
        return True

    def _check_after(self, step: int, measured: Sequence[Measured]) -> Check | None:
        """What the rule is shown after this step; None for nothing."""
        if self.rule.reads == BALANCES and measured:
            return Check(step=step, bins=tuple(balance for _, balance in measured))
        if self.rule.reads == LOSSES and step % self.rule.every == 0:
            total, count = self.accelerator.reduce(self.sums, "mean").tolist()
            self.sums.zero_()
            return Check(step=step, loss=total / count, steps=round(count)) if count else None
        return None

    def _remember(self, memory: Mapping[str, Any]) -> None:
        self.rule.memory = Memory(dict(memory["numbers"]), memory["released"])

    def state(self) -> dict[str, Any]:
        """For a checkpoint; every process has to call it."""
        sums = self.accelerator.reduce(self.sums, "mean").tolist()
        return {"schedule": self.measured.state() if self.measured is not None else {}, "rule": asdict(self.rule.memory), "sums": sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave; {} for a new run, or one from before."""
        if not state:
            return
        if self.measured is not None:
            self.measured.restore(state["schedule"])
        self._remember(state["rule"])
        self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        if isinstance(self.align, Releasing) and self.rule.memory.released is not None:
            self.align.release(self.rule.memory.released)


def _check(config: TrainConfig, rule: StopRule, measured: MeasuredSchedule | None) -> None:
    name, schedule = config.stop_rule["name"], config.schedule["name"]
    if rule.reads == DIFFERENCES:
        raise ValueError(f"--stop-rule {name}: reads forks, which the trainer does not make; ask `gsnr verdict --stop-rule {name}`")
    if rule.reads == BALANCES and not config.gsnr_every:
        raise ValueError(f"--stop-rule {name}: reads what is measured on held-out images; say how often, --gsnr-every K (and --gsnr-bins)")
    if measured is not None and measured.live and not config.gsnr_every:
        raise ValueError(f"--schedule {schedule}: is measured while it trains; say how often, --gsnr-every K, or name a table, --schedule.table")


def check_aligned(config: TrainConfig, alignment: AlignmentModule) -> None:
    """Raises ValueError for a stop rule of a run that has nothing to stop, or a scaffold."""
    if config.stop_rule["name"] != "none" and not alignment.taps:
        raise ValueError(f"--stop-rule {config.stop_rule['name']}: this run has no alignment to release (--alignment)")
    if config.stop_rule["name"] != "none" and (steps := alignment.config.scaffold):
        raise ValueError(
            f"--stop-rule {config.stop_rule['name']}: alignment {alignment.name!r} replaces keys and values for {steps} steps, which no rule "
            "measures; end it with --schedule stop"
        )
