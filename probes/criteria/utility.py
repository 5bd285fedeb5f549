"""Utility: the slope of the denoising loss along the alignment's gradient, by central differences (RARE's U).

    U = mean over steps s of [L(theta + s d) - L(theta - s d)] / (2 s) ,      d = g_a / ||g_a||

g_a is the mean alignment gradient over the backbone up to the block, on train images; L the held-out velocity loss, both in the row's range of t.
Above 0, a step that descends the alignment descends the velocity loss too. The interval is over held-out images, d as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from gsnr.intervals import student_interval
from gsnr.probes.common.candidates import Candidate
from gsnr.probes.common.case import UNDEFINED, Case, Interval, Row
from gsnr.probes.common.row_batches import held_batches, train_batches
from gsnr.probes.common.row_gradients import candidates
from gsnr.train.data.batches import Batch
from gsnr.train.interpolant import interpolate, velocity, velocity_loss
from gsnr.train.parameter_groups import BACKBONE, groups_of

LABEL = "utility"
SUMMARY = "slope of the denoising loss along the alignment's gradient, by central differences (RARE)"
PASSES = ("projectors",)
STEPS = (0.02, 0.05, 0.1)


def slopes(parameters: list[nn.Parameter], direction: list[Tensor], losses: Callable[[], Tensor], steps: tuple[float, ...] = STEPS) -> Tensor:
    """(N,): mean over steps of the central differences of N losses along a direction, which is taken at length 1. Parameters are as before."""
    length = torch.sqrt(sum((d.double().square().sum() for d in direction), torch.zeros((), dtype=torch.float64)))
    before = [p.detach().clone() for p in parameters]
    total: Tensor | float = 0.0
    with torch.no_grad():
        for s in steps:
            for sign in (1.0, -1.0):
                for p, start, d in zip(parameters, before, direction, strict=True):
                    p.copy_(start + sign * s * (d / length.to(d)))
                total = total + sign * losses().double() / (2 * s * len(steps))
        for p, start in zip(parameters, before, strict=True):
            p.copy_(start)
    assert isinstance(total, Tensor)
    return total


def _gradient(case: Case, row: Row, candidate: Candidate, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The mean over train images."""
    subject, model = case.under(row.fork.control, row.block), case.subject.checkpoint.model
    total, images = [torch.zeros_like(p) for p in parameters], 0
    for _, batch in train_batches(case, subject, [row], row.low, row.high):
        x_t = interpolate(batch["latent"], batch["noise"], batch["t"])
        _, hidden = model.forward_with_taps(x_t, batch["t"], model.condition(batch), taps=candidate.alignment.taps, stop=True)
        loss = candidate.alignment.loss(hidden, batch).sum()
        for sum_, g in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            sum_ += 0 if g is None else g
        images += len(batch["t"])
    return [sum_ / images for sum_ in total]


def measure(case: Case) -> Mapping[str, Interval]:
    model = case.subject.checkpoint.model
    found: dict[str, Interval] = {}
    held: dict[tuple[float, float], list[Batch]] = {}
    for row in case.rows:
        named = [(name, p) for name, p in model.named_parameters() if BACKBONE in groups_of(name, row.block)]
        parameters = [p for _, p in named]
        direction = _gradient(case, row, candidates(case)[row.label], parameters)
        if (row.low, row.high) not in held:
            held[row.low, row.high] = list(held_batches(case, case.subject, [], row.low, row.high))

        def losses(batches: list[Batch] = held[row.low, row.high]) -> Tensor:
            each = []
            for b in batches:
                v = model(interpolate(b["latent"], b["noise"], b["t"]), b["t"], model.condition(b))
                each.append(velocity_loss(v, velocity(b["latent"], b["noise"])))
            return torch.cat(each)

        if not any(bool(d.any()) for d in direction):
            found[row.label] = UNDEFINED
            continue
        x_N = slopes(parameters, direction, losses).cpu().numpy()
        ends = student_interval(float(x_N.mean()), float(x_N.std(ddof=1)) / np.sqrt(len(x_N)), len(x_N), 0.95)
        found[row.label] = (float(x_N.mean()), *ends)
    return found
