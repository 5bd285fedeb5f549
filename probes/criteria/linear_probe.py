"""Linear probe: held-out accuracy of a logistic regression of the class on the hidden state, averaged over tokens (REPA's probe;
`gsnr.probes.common.linear_probe`). The model is told no class. It knows the block and the times, not the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gsnr.intervals import wilson
from gsnr.probes.common.case import UNDEFINED, Case, Interval
from gsnr.probes.common.linear_probe import accuracies
from gsnr.probes.common.row_batches import held_batches, hidden_at, train_batches
from gsnr.train.data.batches import Batch

LABEL = "linear probe"
SUMMARY = "accuracy of a linear probe of the class at the block; it does not know the target"
PASSES = ()


def _states(case: Case, batches: Iterable[Batch], blocks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(K,N,D) float64 of K blocks, and labels (N,)."""
    states, labels = [], []
    for batch in batches:
        model = case.subject.checkpoint.model
        nothing = model.null(model.condition(batch))
        states.append(torch.stack([h_BTD.mean(1) for h_BTD in hidden_at(case.subject, batch, blocks, nothing).values()]))
        labels.append(batch["label"])
    return torch.cat(states, dim=1).double(), torch.cat(labels)


@torch.no_grad()
def measure(case: Case) -> Mapping[str, Interval]:
    found = {row.label: UNDEFINED for row in case.rows}
    for (low, high), rows in case.groups("low", "high").items():
        blocks = tuple(sorted({row.block for row in rows}))
        train, seen = _states(case, (batch for _, batch in train_batches(case, case.subject, [], low, high)), blocks)
        held, labels = _states(case, held_batches(case, case.subject, [], low, high), blocks)
        if len(seen.unique()) > 1:
            of = dict(zip(blocks, accuracies(train, seen, held, labels), strict=True))
            found |= {row.label: (of[row.block], *wilson(of[row.block], len(labels))) for row in rows}
    return found
