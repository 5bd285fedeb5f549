"""Candidates for a comparison of alignment targets, and the one procedure by which their projectors are fitted.

Every candidate's projector learns from the same frozen hidden states: same train images, times, noise, steps and rate; the candidates
differ in their targets alone. Shapes: B samples, T tokens, D width, C target channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.subject import Subject
from gsnr.probes.common.targets import chosen, own_target
from gsnr.train.alignments import AlignmentModule, TargetAlignment
from gsnr.train.data import permutation, rng
from gsnr.train.data.batches import Batch, assemble
from gsnr.train.data.heldout import REPEAT, another_image
from gsnr.train.interpolant import interpolate
from gsnr.train.objective import make_alignment

FIT_BATCH, FIT_LR = 64, 1e-3  # peak rate; half a cosine to zero, so that the last steps do not jitter about the optimum
CONSTANT_BATCHES = 8  # of FIT_BATCH train images, whose mean target is the constant control
NONE, SHUFFLED, CONSTANT = "none", "shuffled", "constant"
FIT, CKPT = "fit", "ckpt"
Step = tuple[Batch, Batch, Tensor]  # a batch, other images with other noise at the same times, hidden states of the batch


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An alignment with a projector of its own.

    control: "none"; "shuffled" where the target is that of another image; "constant" where it is one vector, the mean target of train images.
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

    def target_BTC(self, batch: Batch, shuffled: Batch, h_BTD: Tensor) -> Tensor:
        """The target of a batch whose hidden states are h; `shuffled` holds other images, with other noise, at the same times."""
        assert self.aligned is not None
        if self.constant_C is not None:
            return self.constant_C.expand(*h_BTD.shape[:2], -1)
        return self.aligned.target(shuffled if self.control == SHUFFLED else batch, h_BTD).detach()

    def loss(self, h_BTD: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,): the alignment's own discrepancy between the projected hidden state and a target."""
        assert self.aligned is not None
        return self.aligned.discrepancy(self.aligned.projector(h_BTD), target_BTC)


def candidates(subject: Subject, options: TargetOptions) -> list[Candidate]:
    """For each kind of projector the targets, and the controls of the first of them; with the checkpoint's projector its own target alone.
    Alignments without a target have no controls, and are there once."""
    own, targets = own_target(subject), chosen(subject, options.targets)
    trained = [own[0]] if own is not None and own[0] in targets and subject.align_from is None else []
    controls = () if options.controls == (NONE,) else options.controls
    made: list[Candidate] = []
    for projector in options.projector:
        names = trained if projector == CKPT else list(targets)
        for name, control in [*((name, NONE) for name in names), *((name, control) for name in names[:1] for control in controls)]:
            assert own is not None or projector != CKPT
            alignment = (
                copy.deepcopy(own[1]).to(subject.device)
                if own is not None and projector == CKPT
                else _fresh(subject, options.seed, name, targets[name])
            )
            if not isinstance(alignment, TargetAlignment):
                if control == NONE and name not in (c.target for c in made):
                    made.append(Candidate(target=name, control=NONE, projector=NONE, alignment=alignment))
                continue
            one = Candidate(target=name, control=control, projector=projector, alignment=alignment)
            made.append(one if control != CONSTANT else with_constant(subject, options.seed, one))
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


@torch.no_grad()
def with_constant(subject: Subject, seed: int, candidate: Candidate) -> Candidate:
    """The candidate whose target is the mean of its targets over train images, tokens and times."""
    steps = fit_steps(subject, seed, [candidate], CONSTANT_BATCHES)
    means = [candidate.target_BTC(batch, batch, h_BTD).double().mean((0, 1)) for batch, _, h_BTD in steps]
    constant_C = torch.stack(means).mean(0).float()
    return replace(candidate, control=CONSTANT, constant_C=constant_C)


def groups_of(made: list[Candidate]) -> tuple[str, ...]:
    """The feature groups that any candidate's target reads."""
    return tuple(dict.fromkeys(group for candidate in made for group in candidate.alignment.needs))


@torch.no_grad()
def ready(subject: Subject, made: list[Candidate], batch: Batch) -> Batch:
    """A batch on the device, with what the candidates' targets read of the moving average."""
    batch = {key: x.to(subject.device) for key, x in batch.items()}
    for candidate in {c.target: c for c in made}.values():
        batch = candidate.alignment.prepare(batch, subject.ema)
    return batch


@torch.no_grad()
def hidden_at_tap(subject: Subject, batch: Batch) -> Tensor:
    """(B,T,D) hidden states at the tap."""
    x_t = interpolate(batch["latent"], batch["noise"], batch["t"])
    _, hidden = subject.checkpoint.model.forward_with_taps(x_t, batch["t"], batch["label"], taps=(subject.tap,), stop=True)
    return hidden[subject.tap]


def fit_steps(subject: Subject, seed: int, made: list[Candidate], steps: int) -> Iterator[Step]:
    """What projectors are fitted on: train images, a pure function of (seed, step)."""
    subject.checkpoint.model.to(subject.device)
    split, groups = subject.splits["train"], groups_of(made)
    for step in range(steps):
        samples = np.arange(step * FIT_BATCH, (step + 1) * FIT_BATCH, dtype=np.int64)
        index = permutation.image_of(samples, split.size, seed)
        drawn = rng.draw(seed, "fit", samples, subject.header.latent_shape)
        batch = ready(subject, made, assemble(split, index, drawn, drawn.u, groups))
        others = rng.draw(seed, "fit", samples + REPEAT, subject.header.latent_shape)  # another noise as well
        shuffled = ready(subject, made, assemble(split, another_image(index, split.size), others, drawn.u, groups))
        yield batch, shuffled, hidden_at_tap(subject, batch)


def fit(subject: Subject, options: TargetOptions, made: list[Candidate]) -> dict[str, float]:
    """Fits the projectors of the candidates that want it on frozen hidden states of the train split; name -> final loss.

    The final loss is the mean over the last tenth of the steps.
    """
    to_fit = [c for c in made if c.head is not None]
    if not to_fit:
        return {}
    optimizer = torch.optim.AdamW([p for c in to_fit if c.head is not None for p in c.head.parameters()], lr=FIT_LR, weight_decay=0.0)
    tail = max(1, options.fit_steps // 10)
    final = {c.name: 0.0 for c in to_fit}
    steps = fit_steps(subject, options.seed, to_fit, options.fit_steps)
    bar = tqdm(steps, total=options.fit_steps, desc="fitting projectors", unit="step", mininterval=1.0, leave=False)
    for step, (batch, shuffled, h_BTD) in enumerate(bar):
        each = {c.name: c.loss(h_BTD, c.target_BTC(batch, shuffled, h_BTD)).mean() for c in to_fit}
        optimizer.param_groups[0]["lr"] = FIT_LR * 0.5 * (1 + np.cos(np.pi * step / options.fit_steps))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(each.values())).sum().backward()
        optimizer.step()
        if step >= options.fit_steps - tail:
            for name, loss in each.items():
                final[name] += loss.item() / tail
    return final
