"""Gate ablation (AG-REPA, arXiv 2603.01006): how much the velocity changes without the block, E ||v without block k - v|| / ||v||.

It knows the block and the times, not the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsnr.intervals import student_interval
from gsnr.probes.common.case import Case, Interval
from gsnr.probes.common.row_batches import held_batches
from gsnr.train.interpolant import interpolate

LABEL = "gate ablation"
SUMMARY = "how much the predicted velocity changes without the block (AG-REPA); it does not know the target"
PASSES = ()


def changes(model: torch.nn.Module, block: torch.nn.Module, x_t: Tensor, t_B: Tensor, y: Tensor) -> Tensor:
    """(B,): ||v without the block - v|| / ||v||."""
    whole = model(x_t, t_B, y).flatten(1)
    skipped = block.register_forward_hook(_nothing)
    try:
        without = model(x_t, t_B, y).flatten(1)
    finally:
        skipped.remove()
    return (without - whole).norm(dim=1) / whole.norm(dim=1)


def _nothing(module: torch.nn.Module, given: Any, out: Any) -> Any:
    """What a block gives that writes nothing: what it read; of half a block, in a routed model, zeros."""
    if len(given) < 3 or not given[2]:
        return given[0]
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)


@torch.no_grad()
def measure(case: Case) -> Mapping[str, Interval]:
    model = case.subject.checkpoint.model
    found: dict[str, Interval] = {}
    for (block, low, high), rows in case.groups("block", "low", "high").items():
        each = []
        for batch in held_batches(case, case.subject, [], low, high):
            x_t = interpolate(batch["latent"], batch["noise"], batch["t"])
            each.append(changes(model, model.blocks[block - 1], x_t, batch["t"], model.condition(batch)).double().cpu().numpy())
        x_N = np.concatenate(each)
        ends = student_interval(float(x_N.mean()), float(x_N.std(ddof=1)) / np.sqrt(len(x_N)), len(x_N), 0.95)
        found |= {row.label: (float(x_N.mean()), *ends) for row in rows}
    return found
