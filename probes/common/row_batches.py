"""Batches for the rows of a `Case`, hidden states and targets: what criteria and the passes that they share are made from.

Shapes: B samples, T tokens, D width, C target channels, P channels of a patch of the latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor

from gsnr.probes.common.candidates import groups_of, ready
from gsnr.probes.common.case import Case, Row
from gsnr.probes.common.ridge import CHOOSES, SOLVES
from gsnr.probes.common.subject import Subject
from gsnr.train.data.batches import Batch
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.interpolant import interpolate

CHOOSING = 8  # one in so many train images chooses the penalties


def patches_of(case: Case, batch: Batch) -> Tensor:
    """(B,T,P) of the clean latent, token by token."""
    patch = case.subject.checkpoint.config.model.patch_size
    return F.unfold(batch["latent"].float(), patch, stride=patch).mT


def train_batches(case: Case, subject: Subject, rows: list[Row], low: float, high: float) -> Iterator[tuple[int, Batch]]:
    """(SOLVES or CHOOSES, a batch of train images on the device)."""
    split, made = subject.splits["train"], [case.made()[row.label] for row in rows]
    images = min(case.train_images, split.size)
    chosen = max(1, images // CHOOSING)
    for part, first, count in ((SOLVES, chosen, images - chosen), (CHOOSES, 0, chosen)):
        for _, batch in heldout_batches(split, count, case.options.seed, "fit", low, high, groups_of(subject, made), first=first):
            yield part, ready(subject, made, batch)


def held_batches(case: Case, subject: Subject, rows: list[Row], low: float, high: float) -> Iterator[Batch]:
    """Held-out images, the same as the gradients are measured on, on the device."""
    o, made = case.options, [case.made()[row.label] for row in rows]
    for _, batch in heldout_batches(
        subject.splits["heldout"], o.n_images, o.seed, "heldout", low, high, groups_of(subject, made), first=o.first_image
    ):
        yield ready(subject, made, batch)


def hidden_at(subject: Subject, batch: Batch, blocks: tuple[int, ...], told: Tensor | None = None) -> dict[int, Tensor]:
    """block -> (B,T,D). told: to the model, in place of the images' own condition."""
    x_t = interpolate(batch["latent"], batch["noise"], batch["t"])
    model = subject.checkpoint.model
    y = model.condition(batch) if told is None else told
    return model.forward_with_taps(x_t, batch["t"], y, taps=blocks, stop=True)[1]


def with_target(case: Case, rows: list[Row]) -> list[Row]:
    """Those whose alignment has one."""
    return [row for row in rows if case.made()[row.label].aligned is not None]


def targets_of(case: Case, rows: list[Row], hidden: Mapping[int, Tensor], batch: Batch) -> dict[str, Tensor]:
    """thing -> (B,T,C) float32 of a batch that is `ready`; of rows whose alignment has a target, each thing once. hidden: at the rows' blocks, which
    a router may read."""
    found: dict[str, Tensor] = {}
    for row in rows:
        aligned = case.made()[row.label].aligned
        if aligned is not None and row.thing not in found:
            found[row.thing] = aligned.target(batch, hidden[row.block]).detach().float()
    return found
