"""The samples of one bin for many targets: noised latents, hidden states at the tap, and every candidate's target, each made once.

What fits in memory is kept from the first time on; the rest is made anew each time it is asked for, so memory does not grow with --n-images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.engines import default_memory
from gsnr.probes.common.candidates import Candidate, groups_of, hidden_at_tap, partners_of, ready
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.subject import Subject
from gsnr.train.data.batches import Batch
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.interpolant import interpolate, velocity

HIDDEN = "hidden"  # entry of a batch: (B,T,D) at the tap, no gradient


def target_of(k: int) -> str:
    """The entry of a batch that holds the target of candidate k."""
    return f"target {k}"


class Samples:
    """Batches of `t`, `label`, `image` (its number), `x` (the noised latent), `velocity`, HIDDEN and `target_of(k)` for candidates with a target;
    where any has none, all that its loss may read. Can be iterated over again, with the same result."""

    def __init__(self, subject: Subject, options: TargetOptions, made: list[Candidate], low: float, high: float) -> None:
        self.subject, self.options, self.made, self.bounds = subject, options, made, (low, high)
        self.partners = partners_of(subject.splits["heldout"], options.seed, made)
        self.kept: list[Batch] = []
        self.room = default_memory(dict(subject.checkpoint.model.named_parameters()))

    def __iter__(self) -> Iterator[Batch]:
        place, images = 0, 0
        for batch in self.kept:
            yield batch
            place, images = place + 1, images + len(batch["t"]) // self.options.draws
        for batch in self._new(images):
            size = sum(x.nbytes for x in batch.values())
            if place == len(self.kept) and size <= self.room:
                self.kept.append(batch)
                self.room -= size
            place += 1
            yield batch

    def _drawn(self, done: int, partner_N: NDArray[np.int64] | None) -> Iterator[Batch]:
        o = self.options
        drawn = heldout_batches(
            self.subject.splits["heldout"],
            o.n_images - done,
            o.seed,
            "heldout",
            *self.bounds,
            groups_of(self.made),
            batch=o.batch,
            repeats=o.draws,
            partner_N=partner_N,
            first=o.first_image + done,
        )
        for index, batch in drawn:
            yield ready(self.subject, self.made, batch) | {"image": torch.from_numpy(index).to(self.subject.device)}

    @torch.no_grad()
    def _sample(self, batch: Batch, others: dict[str, Batch]) -> Batch:
        h_BTD = hidden_at_tap(self.subject, batch)
        x = interpolate(batch["latent"], batch["noise"], batch["t"])
        made = {key: batch[key] for key in ("t", "label", "image")} | {"x": x, "velocity": velocity(batch["latent"], batch["noise"]), HIDDEN: h_BTD}
        targets: dict[str, Tensor] = {}
        for k, candidate in enumerate(self.made):
            if candidate.aligned is None:
                made = batch | made
            else:
                targets[target_of(k)] = candidate.target_BTC(batch, others, h_BTD)
        return made | targets

    def _new(self, done: int) -> Iterator[Batch]:
        """All but the first `done` images."""
        if done == self.options.n_images:
            return
        others = {control: self._drawn(done, partner_N) for control, partner_N in self.partners.items()}
        for batch in self._drawn(done, None):
            yield self._sample(batch, {control: next(of_control) for control, of_control in others.items()})
