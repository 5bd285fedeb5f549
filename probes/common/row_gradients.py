"""The projectors of a `Case`'s rows, solved in closed form, and their gradients against the denoising gradient: what several criteria share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import gsnr
from gsnr.probes.common.aligned import measure
from gsnr.probes.common.candidates import Candidate
from gsnr.probes.common.case import Case, Row
from gsnr.probes.common.fit import directional
from gsnr.probes.common.ridge import Outputs, Reader, Ridge
from gsnr.probes.common.row_batches import hidden_at, targets_of, train_batches, with_target
from gsnr.probes.common.samples import Samples
from gsnr.train.data.controls import CONSTANT
from gsnr.train.parameter_groups import BACKBONE


def candidates(case: Case) -> dict[str, Candidate]:
    """row -> its alignment with its fitted projector."""

    def make() -> dict[str, Candidate]:
        for (control,), rows in case.groups("control").items():
            _fit(case, control, with_target(case, rows))
        return case.made()

    return case.shared("projectors", make)


@torch.no_grad()
def _fit(case: Case, control: str, rows: list[Row]) -> None:
    """Solves the projectors of one control by ridge regression, all blocks in one pass over the train images. Where the loss reads a target's
    direction alone, the regression is on unit targets, as `gsnr.probes.common.fit` says."""
    subject, blocks = case.under(control), tuple(sorted({row.block for row in rows}))
    outputs: Outputs | None = None
    ridges: dict[int, Ridge] = {}
    unit: dict[str, bool] = {}
    for part, batch in train_batches(case, subject, rows, 0.0, 1.0) if rows else ():
        hidden = hidden_at(subject, batch, blocks)
        y = targets_of(case, rows, hidden, batch)
        unit = unit or {row.thing: directional(case.made()[row.label], y[row.thing][:1]) for row in rows}
        aims = {thing: F.normalize(y_BTC, dim=-1) if unit[thing] else y_BTC for thing, y_BTC in y.items()}
        outputs = outputs or Outputs({thing: y_BTC.shape[-1] for thing, y_BTC in aims.items()})
        given = outputs.add(aims, part)
        for block, h_BTD in hidden.items():
            ridges.setdefault(block, Ridge(outputs)).add(h_BTD.float(), given)
    solved = {block: ridge.solve() for block, ridge in ridges.items()}
    for row in rows:
        aligned = case.made()[row.label].aligned
        assert aligned is not None
        _take(aligned.projector, solved[row.block][row.thing])


def _take(projector: nn.Module, reader: Reader) -> None:
    """Gives a linear projector the weights of a reader."""
    (layer,) = (module for module in projector.modules() if isinstance(module, nn.Linear))
    layer.weight.copy_(reader.weight_PC.T)
    layer.bias.copy_(reader.bias_C)


def comparisons(case: Case) -> dict[str, gsnr.Comparison]:
    """row -> its alignment gradient against the denoising gradient, on identical held-out samples in its range of t; the parameters are those of
    the backbone up to its block. Rows of a constant target are left out: a projector that is fitted to a constant learns it, and no gradient is
    left."""

    def make() -> dict[str, gsnr.Comparison]:
        fitted, found = candidates(case), dict[str, gsnr.Comparison]()
        for (control, block, low, high), rows in case.groups("control", "block", "low", "high").items():
            if control == CONSTANT:
                continue
            subject, made = case.under(control, block), [fitted[row.label] for row in rows]
            results = measure(subject, case.options, made, Samples(subject, case.options, made, low, high))
            found |= {c.target: results[c.name][BACKBONE] for c in made}
        return found

    return case.shared("gradients", make)
