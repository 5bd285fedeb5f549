"""The samples of one bin for many targets: noised latents, hidden states at the tap, and every candidate's target, each made once.

What fits in memory is kept from the first time on; the rest is made anew each time it is asked for, so memory does not grow with --n-images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.engines import default_memory
from gsnr.probes.common.candidates import Candidate, groups_of, hidden_at_tap, partners_of, prepared
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.streaming import OWN
from gsnr.probes.common.subject import Subject
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import heldout_batches, require
from gsnr.train.interpolant import velocity
from gsnr.train.noising import noised

CONDITION = "condition"  # entry of a batch: what the model is told
HIDDEN = "hidden"  # entry of a batch: (B,T,D) at the tap, no gradient


def target_of(k: int) -> str:
    """The entry of a batch that holds the target of candidate k."""
    return f"target {k}"


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """`self[step]`: OWN -> a batch, control -> other images with other noise at the same times; on the CPU."""

    split: Split
    options: TargetOptions
    groups: tuple[str, ...]
    partners: dict[str, NDArray[np.int64]]
    bounds: tuple[float, float]

    @property
    def together(self) -> int:
        """Images of a batch."""
        return max(1, self.options.batch // self.options.draws)

    def __getitem__(self, step: int) -> dict[str, Batch]:
        o, done = self.options, step * self.together

        def one(partner_N: NDArray[np.int64] | None) -> Batch:
            few = {"images": min(self.together, o.n_images - done), "first": o.first_image + done, "batch": o.batch, "repeats": o.draws}
            stream = {"seed": o.seed, "stream": "heldout", "low": self.bounds[0], "high": self.bounds[1], "groups": self.groups}
            index, batch = next(heldout_batches(self.split, **few, **stream, partner_N=partner_N))  # type: ignore[arg-type]
            return batch | {"image": torch.from_numpy(index)}

        return {OWN: one(None)} | {control: one(partner_N) for control, partner_N in self.partners.items()}


class Samples:
    """Batches of `t`, CONDITION, `image` (its number), `x` (the noised latent), `extra` (the noised class token, of a model that has one),
    `velocity`, HIDDEN and `target_of(k)` for candidates with a target; where any has none, all that its loss may read. Can be iterated over again,
    with the same result."""

    def __init__(self, subject: Subject, options: TargetOptions, made: list[Candidate], low: float, high: float) -> None:
        split = subject.splits["heldout"]
        require(split, options.n_images, options.first_image)
        partners = partners_of(split, options.seed, made)
        self.subject, self.made = subject, made
        self.steps = _Steps(split=split, options=options, groups=groups_of(subject, made), partners=partners, bounds=(low, high))
        self.count = -(-options.n_images // self.steps.together)
        self.kept: list[Batch] = []
        self.room = default_memory(dict(subject.checkpoint.model.named_parameters()))

    def __iter__(self) -> Iterator[Batch]:
        yield from self.kept
        for step, pair in enumerate(prepared(self.subject, self.made, self.steps, len(self.kept), self.count), start=len(self.kept)):
            batch = self._sample(*pair)
            size = sum(x.nbytes for x in batch.values())
            if step == len(self.kept) and size <= self.room:
                self.kept.append(batch)
                self.room -= size
            yield batch

    @torch.no_grad()
    def _sample(self, batch: Batch, others: dict[str, Batch]) -> Batch:
        h_BTD = hidden_at_tap(self.subject, batch)
        model = self.subject.checkpoint.model
        x, extra = noised(model, batch)
        made = {key: batch[key] for key in ("t", "image")} | {CONDITION: model.condition(batch), HIDDEN: h_BTD}
        made |= {"x": x, "velocity": velocity(batch["latent"], batch["noise"])}
        targets: dict[str, Tensor] = {} if extra is None else {"extra": extra}
        for k, candidate in enumerate(self.made):
            if candidate.aligned is None:
                made = batch | made
            else:
                targets[target_of(k)] = candidate.target_BTC(batch, others, h_BTD)
        return made | targets
