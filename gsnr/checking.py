"""`gsnr.check`: is every engine right on this model and this loss? Each against one backward a sample in float64, and the coupling test."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gsnr.batches import Batch, batch_size, device_named, double, moved
from gsnr.coupling import coupled, require_no_batch_norm_in_training
from gsnr.engines import ENGINES, Loss, find
from gsnr.gradients import PerSample, Signs, wide
from gsnr.moments import Labels, by_group
from gsnr.selection import Groups, Parameters, check_kinds, label, select
from gsnr.surroundings import exact, undisturbed

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of ||g_i||^2 and of S, relative to the largest; coarser types: 5e-2
TOLERANCE_LOW = 5e-2


@dataclass(frozen=True, kw_only=True)
class Line:
    """One engine and group: largest errors of ||g_i||^2 (relative to the largest) and of S (its norm, relative), or why there is none."""

    engine: str
    group: str
    error_q: float
    error_sum: float
    ok: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What `check` returns; printing it shows the table. `coupled`: samples whose loss depends on the others, None where the loss is random."""

    lines: tuple[Line, ...]
    coupled: tuple[int, ...] | None
    coupling: str

    @property
    def ok(self) -> bool:
        """Samples are not coupled, and every engine that covers the model agrees with the reference."""
        return not self.coupled and all(line.ok or line.reason for line in self.lines)

    def __str__(self) -> str:
        rows = [("engine", "group", "error of ||g_i||^2", "error of S", "")]
        for line in self.lines:
            numbers = ("-", "-") if line.reason else (f"{line.error_q:.1e}", f"{line.error_sum:.1e}")
            rows.append((line.engine, line.group, *numbers, line.reason or ("ok" if line.ok else "WRONG")))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  " + row[4] for row in rows]
        return "\n".join([*(text.rstrip() for text in table), f"coupling: {self.coupling}"])


Moments64 = tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]


def _moments(engine: str, model: nn.Module, loss: Loss, batch: Batch, selected: dict[str, nn.Parameter], labels: Labels) -> Moments64:
    """(group -> ||g_i||^2, name -> S float64)."""
    q: dict[str, torch.Tensor] = {}
    sums: dict[str, torch.Tensor] = {}
    device = next(iter(selected.values())).device

    def visit(name: str, gradients: PerSample) -> None:
        with exact(device):
            plus = wide(selected[name].detach()).new_zeros(selected[name].shape)
            minus = torch.zeros_like(plus)
            q[name] = gradients.accumulate(plus, minus, Signs.of(np.where(np.arange(gradients.samples) % 2, -1.0, 1.0), device))
            sums[name] = plus.double() + minus.double()

    with undisturbed(model, device):
        find(engine)(model, loss, batch, selected, visit)
    return by_group(q, labels), sums


def _compare(engine: str, found: Moments64, reference: Moments64, labels: Labels, tolerance: float) -> list[Line]:
    squared = {name: (found[1][name] - s).square().sum() for name, s in reference[1].items()}
    scale = {name: s.square().sum() for name, s in reference[1].items()}
    off, size = by_group(squared, labels), by_group(scale, labels)
    lines = []
    for group, q in reference[0].items():
        largest = q.max()
        error_q = float(np.abs(found[0][group] - q).max() / largest) if largest > 0 else float(np.abs(found[0][group]).max())
        typical = max(float(size[group]), float(q.sum()))  # ||S||^2, or n ||g||^2 where the gradients cancel
        error_sum = float(np.sqrt(off[group] / typical)) if typical > 0 else float(np.sqrt(off[group]))
        lines.append(Line(engine=engine, group=group, error_q=error_q, error_sum=error_sum, ok=max(error_q, error_sum) <= tolerance))
    return lines


def check(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    parameters: Parameters | None = None,
    groups: Groups | None = None,
    *,
    device: str | torch.device | None = None,
) -> Check:
    """Compares every engine with the float64 loop on one batch, per group, and tests whether samples are coupled. `print(gsnr.check(...))`.

    Arguments as in `gsnr.measure`. Works on copies: the model is left as it is. Raises ValueError for batch norm in train mode, an
    empty selection or a batch or loss of a wrong shape; an engine that refuses or fails is a line of the table.
    """
    require_no_batch_norm_in_training(model)
    check_kinds(parameters, groups)
    model, batch = copy.deepcopy(model), moved(batch, device_named(device))
    b = batch_size(batch)
    selected = select(model, parameters)
    labels = label(list(selected), groups)
    dtype = next(iter(selected.values())).dtype
    with undisturbed(model, next(iter(selected.values())).device):
        found = coupled(model, loss, batch)
    if found is None:
        coupling = "not tested, the loss draws random numbers (dropout): use eval mode"
    elif found:
        which = f"losses of {len(found)} of {b} samples depend on the others (samples {', '.join(map(str, found[:8]))})"
        coupling = f"{which}; per-sample gradients are not defined"
    else:
        coupling = f"none, {b} samples alone and together agree"
    wide_model = copy.deepcopy(model).double()
    reference = _moments("loop", wide_model, loss, double(batch), select(wide_model, parameters), labels)
    lines: list[Line] = []
    for engine in ENGINES:
        try:
            mine = _moments(engine, model, loss, batch, selected, labels)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0][:100]
            lines.append(Line(engine=engine, group="all", error_q=float("nan"), error_sum=float("nan"), ok=False, reason=f"refuses: {reason}"))
            continue
        lines += _compare(engine, mine, reference, labels, TOLERANCE.get(dtype, TOLERANCE_LOW))
    return Check(lines=tuple(lines), coupled=None if found is None else tuple(found), coupling=coupling)
