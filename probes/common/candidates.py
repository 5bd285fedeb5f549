"""Candidates for a comparison of alignment targets: which targets, with whose projector, and the controls of each.

Shapes: B samples, T tokens, D width, C target channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnr.probes.common.options import CONSTANT, NONE, SHUFFLED, WITHIN_CLASS, TargetOptions
from gsnr.probes.common.streaming import OWN, Steps, streamed
from gsnr.probes.common.subject import Subject
from gsnr.probes.common.targets import chosen, own_target, trained_target
from gsnr.train.alignments import AlignmentModule, TargetAlignment
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import partners
from gsnr.train.noising import noised
from gsnr.train.objective import attach_teacher, make_alignment

FIT, CKPT = "fit", "ckpt"
OTHERS = (SHUFFLED, WITHIN_CLASS)  # controls that are targets of other images


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An alignment with a projector of its own.

    control: "none"; "shuffled" where the target is that of another image, "shuffled_class" where it is that of another image of the same class;
    "constant" where it is one vector, the mean target of train images.
    projector: "fit" (by `fit`), "ckpt" (the checkpoint's own) or "fresh" (as it is initialised); "none" for an alignment without a target,
    whose loss has no projector to fit.
    """

    target: str
    control: str
    projector: str
    alignment: AlignmentModule
    constant_C: Tensor | None = None

    @property
    def which(self) -> dict[str, str]:
        """The columns of a table that tell candidates apart."""
        return {"target": self.target, "control": self.control, "projector": self.projector}

    @property
    def name(self) -> str:
        marks = [mark for mark in (self.control, self.projector) if mark not in (NONE, FIT)]
        return " ".join([self.target, *(f"[{mark}]" for mark in marks)])

    @property
    def aligned(self) -> TargetAlignment | None:
        """The alignment where it has a target."""
        return self.alignment if isinstance(self.alignment, TargetAlignment) else None

    @property
    def head(self) -> nn.Module | None:
        """The projector that is to be fitted; None for one that is not."""
        return self.aligned.projector if self.aligned is not None and self.projector == FIT else None

    def target_BTC(self, batch: Batch, others: Mapping[str, Batch], h_BTD: Tensor) -> Tensor:
        """The target of a batch whose hidden states are h; others: control -> other images, with other noise, at the same times."""
        assert self.aligned is not None
        if self.constant_C is not None:
            return self.constant_C.expand(*h_BTD.shape[:2], -1)
        return self.aligned.target(others.get(self.control, batch), h_BTD).detach()

    def loss(self, h_BTD: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,): the alignment's own discrepancy between the projected hidden state and a target."""
        assert self.aligned is not None
        return self.aligned.discrepancy(self.aligned.projector(h_BTD), target_BTC)


def _controls(subject: Subject, options: TargetOptions, projector: str, first: bool) -> list[str]:
    """Of one target. Each has its shuffled control, which is its floor; the others belong to the first target. A projector that is fitted to a
    constant learns it exactly, and no gradient is left: that control is for projectors that are not. Captions are no classes."""
    asked = [control for control in options.controls if control != NONE and (first or control == SHUFFLED)]
    left_out = {CONSTANT} if projector == FIT else set()
    left_out |= {WITHIN_CLASS} if subject.checkpoint.config.model.text else set()
    return [control for control in asked if control not in left_out]


def candidates(subject: Subject, options: TargetOptions) -> list[Candidate]:
    """For each kind of projector the targets, each followed by its controls; with the checkpoint's projector its own target alone.
    Alignments without a target have no controls, and are there once."""
    own, targets = own_target(subject), chosen(subject, options.targets)
    trained = [name for name in targets if name == trained_target(subject, targets)]
    made: list[Candidate] = []
    for projector in options.projector:
        names = trained if projector == CKPT else list(targets)
        for name in names:
            alignment = own[1] if own and projector == CKPT else _fresh(subject, options.seed, name, targets[name])
            if isinstance(alignment, TargetAlignment):
                kinds = [(control, projector) for control in (NONE, *_controls(subject, options, projector, first=name == names[0]))]
            else:
                kinds = [] if name in (c.target for c in made) else [(NONE, NONE)]
            for control, its_projector in kinds:
                its = copy.deepcopy(alignment).to(subject.device)
                attach_teacher(its, subject.header)
                made.append(Candidate(target=name, control=control, projector=its_projector, alignment=its))
    return made


def _fresh(subject: Subject, seed: int, name: str, options: dict[str, Any]) -> AlignmentModule:
    """A target as it is in the checkpoint (its router, say), with a newly initialised projector."""
    own = own_target(subject)
    torch.manual_seed(seed)
    made = make_alignment(options, subject.checkpoint.config.model, subject.header.groups)
    made.calibrate(subject.splits["train"])
    if own is not None and name == own[0]:
        of_another_vae = subject.aligned.header is not None and subject.aligned.header.vae != subject.header.vae
        left = ("projector.", "normaliser.") if of_another_vae else ("projector.",)
        learned = {key: value for key, value in own[1].state_dict().items() if not key.startswith(left)}
        made.load_state_dict(learned, strict=False)
    return made.to(subject.device)


def with_constants(made: list[Candidate], means: Mapping[str, Tensor]) -> list[Candidate]:
    """The candidates, where those of control "constant" have their vector. means: target -> (C,)."""
    return [replace(c, constant_C=means[c.target]) if c.control == CONSTANT else c for c in made]


def groups_of(subject: Subject, made: list[Candidate]) -> tuple[str, ...]:
    """The columns of the cache that the model or any candidate's target reads."""
    of_candidates = (group for candidate in made for group in candidate.alignment.columns)
    return tuple(dict.fromkeys([*of_candidates, *subject.checkpoint.config.model.reads]))


def partners_of(split: Split, seed: int, made: list[Candidate]) -> dict[str, NDArray[np.int64]]:
    """control -> image -> the image whose target it gets, for the controls that any candidate has."""
    asked = {c.control for c in made}
    labels = split.take(np.arange(split.size, dtype=np.int64), ("label",))["label"] if WITHIN_CLASS in asked else None
    return {control: partners(split.size, seed, labels if control == WITHIN_CLASS else None) for control in OTHERS if control in asked}


@torch.no_grad()
def ready(subject: Subject, made: list[Candidate], batch: Batch) -> Batch:
    """A batch on the device, with what the candidates' targets read of the moving average."""
    batch = {key: x.to(subject.device) for key, x in batch.items()}
    for candidate in {c.target: c for c in made}.values():
        batch = candidate.alignment.prepare(batch, subject.ema)
    return batch


def prepared(subject: Subject, made: list[Candidate], steps: Steps, first: int, last: int) -> Iterator[tuple[Batch, dict[str, Batch]]]:
    """(a batch; control -> other images at the same times) of the steps first .. last - 1, each `ready`."""
    for batches in streamed(steps, first, last, subject.device):
        ready_of = {name: ready(subject, made, batch) for name, batch in batches.items()}
        yield ready_of.pop(OWN), ready_of


@torch.no_grad()
def hidden_at_tap(subject: Subject, batch: Batch) -> Tensor:
    """(B,T,D) hidden states at the tap."""
    model = subject.checkpoint.model
    x_t, extra = noised(model, batch)
    _, hidden = model.forward_with_taps(x_t, batch["t"], model.condition(batch), taps=(subject.tap,), stop=True, extra=extra)
    return hidden[subject.tap]
