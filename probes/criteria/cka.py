"""Debiased linear CKA of hidden state and target, both averaged over tokens (Kornblith et al. 2019; `gsnr.probes.common.kernels`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from gsnr.intervals import NORMAL_95
from gsnr.probes.common.case import UNDEFINED, Case, Interval
from gsnr.probes.common.kernels import cka
from gsnr.probes.common.row_batches import held_batches, hidden_at, targets_of, with_target

LABEL = "debiased CKA"
SUMMARY = "similarity of hidden state and target over images, without the bias of few images"
PASSES = ()
FOLDS = 16  # of images, for the jackknife
Array = NDArray[np.float64]


def _kernel(x_ND: Array) -> Array:
    return x_ND @ x_ND.T


def with_interval(h_ND: Array, y_NC: Array) -> Interval:
    """The interval leaves out one of 16 parts of the images at a time."""
    k_NN, l_NN = _kernel(h_ND), _kernel(y_NC)
    value, n = cka(k_NN, l_NN), len(h_ND)
    rest = [np.delete(np.arange(n), fold) for fold in np.array_split(np.arange(n), min(FOLDS, n - 4))]
    left = np.array([cka(k_NN[np.ix_(kept, kept)], l_NN[np.ix_(kept, kept)]) for kept in rest])
    half = NORMAL_95 * float(np.sqrt((len(left) - 1) * np.var(left)))
    return value, value - half, value + half


@torch.no_grad()
def measure(case: Case) -> Mapping[str, Interval]:
    found = {row.label: UNDEFINED for row in case.rows}
    for (control, low, high), rows in case.groups("control", "low", "high").items():
        subject, rows = case.under(control), with_target(case, rows)
        blocks = tuple(sorted({row.block for row in rows}))
        states: dict[int, list[Array]] = {block: [] for block in blocks}
        targets: dict[str, list[Array]] = {row.thing: [] for row in rows}
        for batch in held_batches(case, subject, rows, low, high) if rows else ():
            hidden = hidden_at(subject, batch, blocks)
            for block, h_BTD in hidden.items():
                states[block].append(h_BTD.double().mean(1).cpu().numpy())
            for thing, y_BTC in targets_of(case, rows, hidden, batch).items():
                targets[thing].append(y_BTC.double().mean(1).cpu().numpy())
        for row in rows:
            found[row.label] = with_interval(np.concatenate(states[row.block]), np.concatenate(targets[row.thing]))
    return found
