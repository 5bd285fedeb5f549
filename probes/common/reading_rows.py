"""How well linear readers of hidden states predict each row's target, and what it adds to the clean latent: what two criteria share.

What a target adds (after RARE, arXiv 2609.34732): the target is whitened, what ridge regression predicts of it from the clean latent's patches is
taken off, and each direction is divided by its deviation, at least `LEAST` of a whitened one. RARE takes off what the teacher's layer below
predicts; with one layer of a teacher in the cache, the latent is what lies below. Readers are fitted on train images, an eighth of which chooses
the penalty, and judged on held-out ones. Shapes: B samples, T tokens, D width, C target channels, R directions, P channels side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.probes.common.case import Case, Row
from gsnr.probes.common.readings import Joined, Readings
from gsnr.probes.common.ridge import Outputs, Reader, Ridge
from gsnr.probes.common.row_batches import held_batches, hidden_at, patches_of, targets_of, train_batches, with_target
from gsnr.probes.common.subject import Subject
from gsnr.train.data.batches import Batch

DIRECTIONS, LEAST = 128, 0.1  # RARE's
VARIES = 1e-6  # of the largest variance: what varies less is no direction
ADDED = " added"
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Added:
    """What a target adds to the latent: target (B,T,C), patches (B,T,P) -> (B,T,R)."""

    mean_C: Tensor
    whitening_CR: Tensor
    reader: Reader
    scale_R: Tensor

    def __call__(self, target_BTC: Tensor, patches_BTP: Tensor) -> Tensor:
        white_BTR = (target_BTC.double() - self.mean_C) @ self.whitening_CR
        return ((white_BTR - self.reader(patches_BTP)) / self.scale_R).float()


def whitening(target_NC: Tensor, most: int = DIRECTIONS) -> tuple[Tensor, Tensor]:
    """Mean (C,), and (C,R) that takes rows of float64 to R uncorrelated directions of variance 1, those that vary most first."""
    mean_C = target_NC.mean(0)
    variance_C, axes_CC = torch.linalg.eigh((target_NC - mean_C).T @ (target_NC - mean_C) / len(target_NC))
    kept = (variance_C > VARIES * variance_C.max().clamp_min(torch.finfo(torch.float32).tiny)).nonzero().flatten().flip(0)[:most]
    return mean_C, axes_CC[:, kept] / variance_C[kept].sqrt()


@torch.no_grad()
def _added(case: Case, subject: Subject, rows: list[Row]) -> dict[str, Added]:
    """thing -> what it adds; a target that does not vary adds nothing, and is not there."""
    blocks = tuple(sorted({row.block for row in rows}))
    parts: list[int] = []
    patches: list[Tensor] = []
    targets: dict[str, list[Tensor]] = {}
    for part, batch in train_batches(case, subject, rows, 0.0, 1.0):
        parts.append(part)
        patches.append(patches_of(case, batch))
        for thing, y_BTC in targets_of(case, rows, hidden_at(subject, batch, blocks), batch).items():
            targets.setdefault(thing, []).append(y_BTC.double())
    found = {}
    for thing, batches in targets.items():
        mean_C, whitening_CR = whitening(torch.cat(batches).flatten(0, 1))
        if not whitening_CR.shape[1]:
            continue
        white = [(y_BTC - mean_C) @ whitening_CR for y_BTC in batches]
        outputs = Outputs({thing: whitening_CR.shape[1]})
        ridge = Ridge(outputs)
        for part, x_BTP, y_BTR in zip(parts, patches, white, strict=True):
            ridge.add(x_BTP.double(), outputs.add({thing: y_BTR}, part))
        reader = ridge.solve()[thing]
        left_NR = torch.cat([(y_BTR - reader(x_BTP)).flatten(0, 1) for x_BTP, y_BTR in zip(patches, white, strict=True)])
        scale_R = left_NR.std(0, correction=0).clamp_min(LEAST)
        found[thing] = Added(mean_C=mean_C, whitening_CR=whitening_CR, reader=reader, scale_R=scale_R)
    return found


def _things(case: Case, rows: list[Row], added: dict[str, Added], hidden: dict[int, Tensor], batch: Batch) -> dict[str, Tensor]:
    """What is read: each target, and what it adds."""
    targets, patches_BTP = targets_of(case, rows, hidden, batch), patches_of(case, batch)
    return targets | {thing + ADDED: of(targets[thing], patches_BTP) for thing, of in added.items()}


@torch.no_grad()
def _read(case: Case, control: str, rows: list[Row], low: float, high: float) -> Readings:
    subject, blocks = case.under(control), tuple(sorted({row.block for row in rows}))
    added = case.shared(f"added {control}", lambda: _added(case, subject, rows))
    outputs: Outputs | None = None
    ridges: dict[int, Ridge] = {}
    total_TP: Tensor | float = 0.0
    images = 0
    for part, batch in train_batches(case, subject, rows, low, high):
        hidden = hidden_at(subject, batch, blocks)
        y = _things(case, rows, added, hidden, batch)
        outputs = outputs or Outputs({name: y_BTC.shape[-1] for name, y_BTC in y.items()})
        given = outputs.add(y, part)
        total_TP = torch.cat(list(y.values()), dim=-1).sum(0).double() + total_TP
        images += len(batch["t"])
        for block, h_BTD in hidden.items():
            ridges.setdefault(block, Ridge(outputs)).add(h_BTD.float(), given)
    assert outputs is not None and isinstance(total_TP, Tensor)
    readers = {block: Joined(ridge.solve()) for block, ridge in ridges.items()}
    readings = Readings(dict(zip(outputs.sizes, (total_TP / images).split(list(outputs.sizes.values()), dim=1), strict=True)))
    for batch in held_batches(case, subject, rows, low, high):
        hidden = hidden_at(subject, batch, blocks)
        readings.begin(torch.cat(list(_things(case, rows, added, hidden, batch).values()), dim=-1))
        for block, h_BTD in hidden.items():
            readings.add(block, readers[block](h_BTD.float()))
    return readings


def readings(case: Case, low: float, high: float) -> dict[str, Readings]:
    """control -> how well its rows' targets are read at their blocks, over a range of t."""

    def make() -> dict[str, Readings]:
        of = {control: with_target(case, rows) for (control,), rows in case.groups("control").items()}
        return {control: _read(case, control, rows, low, high) for control, rows in of.items() if rows}

    return case.shared(f"readers {low:.4g}-{high:.4g}", make)


def shares(of: Readings, block: int, name: str) -> tuple[float, Array]:
    """R^2 of a thing at a block, and its delete-one values (N,); NaN of what does not vary, and of what is not there."""
    if name not in of.names:
        return float("nan"), np.full(sum(map(len, of.total_BK)), np.nan)
    k = of.names.index(name)
    total_N, residual_N = np.concatenate(of.total_BK)[:, k], np.concatenate(of.residual_BK[block])[:, k]
    with np.errstate(invalid="ignore", divide="ignore"):
        left_N = 1 - (residual_N.sum() - residual_N) / (total_N.sum() - total_N)
        return float(1 - residual_N.sum() / total_N.sum()), left_N
