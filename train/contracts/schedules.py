"""The contract of a schedule."""

from __future__ import annotations

from dataclasses import asdict

import torch

from gsnr import plugins
from gsnr.plugins import hold, hold_options
from gsnr.train.config import schedule_config
from gsnr.train.schedules import ScheduleConfig, TimeSchedule, WeightSchedule, make_schedule

STEPS = (1, 2, 100, 10**4, 10**6)
BUDGET = 1e-3  # of a normalised schedule's mean over 10^5 times, whose jumps lie anywhere


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that schedule `name` breaks; what was checked otherwise."""
    module = plugins.find("schedules", name)
    config = module.Config
    hold_options(config, ScheduleConfig, name)
    hold(issubclass(module.Schedule, WeightSchedule), name, "Schedule extends neither WeightSchedule nor TimeSchedule")
    options = {"name": name} | getattr(module, "EXAMPLE", {})
    resolved = {"name": name} | asdict(schedule_config(options, "schedule"))
    hold({"name": name} | asdict(schedule_config(resolved, "schedule")) == resolved, name, "its options, resolved, do not resolve to themselves")
    schedule = make_schedule(options)
    said = _weights(name, schedule)
    if isinstance(schedule, TimeSchedule):
        said += _budget(name, make_schedule(options | {"normalise": True}))
    return said


def _weights(name: str, schedule: WeightSchedule) -> list[str]:
    """Shapes, dtype, range, each sample's is its own, and when it is over."""
    t = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(30, generator=torch.Generator().manual_seed(0))])
    steps = [*STEPS, *((schedule.last, schedule.last + 1, schedule.last + 10**6) if schedule.last is not None else ())]
    for step in steps:
        w = schedule.weight(step, t)
        hold(w.shape == t.shape and w.dtype == torch.float32, name, f"weight of shape {tuple(w.shape)}, {w.dtype}; not (B,) in float32")
        hold(bool(torch.isfinite(w).all() and (w >= 0).all()), name, f"a weight below 0, or not finite, in step {step}")
        hold(torch.equal(schedule.weight(step, t[3:]), w[3:]), name, "a sample's weight depends on the other samples of its batch")
        hold(torch.equal(schedule.weight(step, t), w), name, "the same step has two weights; draw random numbers nowhere")
        hold(not schedule.over(step) or not w.any(), name, f"last = {schedule.last}, but a weight that is not 0 in step {step}")
    if schedule.last is not None:
        hold(bool(schedule.weight(schedule.last, t).any()), name, f"last = {schedule.last}, but that step's weights are 0")
    over = f"over after step {schedule.last}: then nothing of the alignment is computed" if schedule.last is not None else "never over"
    return ["weight: (B,) in float32, finite, at least 0, a function of step and t, one sample's is its own", over]


def _budget(name: str, schedule: WeightSchedule) -> list[str]:
    t = (torch.arange(10**5) + 0.5) / 10**5
    mean = schedule.weight(1, t).double().mean().item()
    hold(abs(mean - 1) < BUDGET, name, f"normalised, its mean over t is {mean:.4f}, not 1")
    return ["normalised: mean 1 over uniform t"]
