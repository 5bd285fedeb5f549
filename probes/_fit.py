"""Candidates for a comparison of alignment targets, and the one procedure by which their projectors are fitted.

Every candidate's projector learns from the same frozen hidden states: same train images, times, noise, steps and rate; the candidates
differ in their targets alone. Shapes: B samples, T tokens, D width, C target channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probes._subject import Options, Subject
from train.alignments import AlignmentModule
from train.data import draws, order
from train.data.batches import Batch, assemble
from train.data.heldout import REPEAT, another_image
from train.interpolant import interpolate
from train.objective import make_alignment

FIT_BATCH, FIT_LR = 64, 1e-3  # peak rate; half a cosine to zero, so that the last steps do not jitter about the optimum
NONE, SHUFFLED = "none", "shuffled"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A target with a projector of its own. control: "none", or "shuffled" where the target is that of another image.
    projector: "fit" (by `fit`) or "ckpt" (the checkpoint's own)."""

    target: str
    control: str
    projector: str
    alignment: AlignmentModule

    @property
    def name(self) -> str:
        marks = [mark for mark in (self.control, self.projector) if mark not in (NONE, "fit")]
        return " ".join([self.target, *(f"[{mark}]" for mark in marks)])

    def target_BTC(self, batch: Batch, shuffled: Batch, h_BTD: Tensor) -> Tensor:
        """The target of a batch whose hidden states are h; `shuffled` holds other images, with other noise, at the same times."""
        return self.alignment.target(shuffled if self.control == SHUFFLED else batch, h_BTD).detach()

    def loss(self, h_BTD: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,): the alignment's own discrepancy between the projected hidden state and a target."""
        return self.alignment.discrepancy(self.alignment.projector(h_BTD), target_BTC)


def own_target(subject: Subject) -> tuple[str, dict[str, Any], AlignmentModule] | None:
    """(name, options, module) of what the checkpoint's hidden states at `subject.tap` were aligned to; None for no alignment."""
    alignment = subject.checkpoint.alignment
    if not alignment.parts:
        return None
    options = subject.checkpoint.config.alignment
    first = options["parts"][0] if options["name"] == "multi" else options
    name = f"uniform_{first['source']}" if first["name"] == "uniform" else first["name"]
    return name, first, alignment.parts[0]


def options_of(subject: Subject) -> dict[str, dict[str, Any]]:
    """target -> options of its alignment: the checkpoint's own, and uniform mid and deep where the cache has their features.

    The uniform targets take what is not the target from the checkpoint's alignment, where that is one of VAE features.
    """
    own = own_target(subject)
    shared = {key: own[1][key] for key in ("split", "features", "projector", "loss") if own and "source" in own[1]}
    sources = ("mid", "deep") if {"G3", "G4"} <= subject.header.groups.keys() else ()
    uniform = {f"uniform_{source}": {"name": "uniform", "source": source, "tap": subject.tap} | shared for source in sources}
    return uniform if own is None else {own[0]: own[1]} | {name: o for name, o in uniform.items() if name != own[0]}


def candidates(subject: Subject, seed: int) -> list[Candidate]:
    """The checkpoint's own target, uniform mid, uniform deep, and the own target shuffled (uniform mid where there is none), each with a
    projector to be fitted; and the own target with the checkpoint's projector.
    """
    c, own, options = subject.checkpoint, own_target(subject), options_of(subject)

    def fresh(name: str) -> AlignmentModule:
        """A target as it is in the checkpoint (its router, say), with a newly initialised projector."""
        torch.manual_seed(seed)
        made = make_alignment(options[name], c.config.model, subject.header.groups)
        if own is not None and name == own[0]:
            learned = {key: value for key, value in own[2].state_dict().items() if not key.startswith("projector.")}
            made.load_state_dict(learned, strict=False)
        else:
            made.calibrate(subject.splits["train"])
        return made.to(subject.device)

    first = next(iter(options))
    true = [Candidate(target=name, control=NONE, projector="fit", alignment=fresh(name)) for name in options]
    control = Candidate(target=first, control=SHUFFLED, projector="fit", alignment=fresh(first))
    if own is None:
        return [*true, control]
    as_trained = Candidate(target=own[0], control=NONE, projector="ckpt", alignment=copy.deepcopy(own[2]).to(subject.device))
    return [*true, control, as_trained]


@torch.no_grad()
def ready(subject: Subject, made: list[Candidate], batch: Batch) -> Batch:
    """A batch on the device, with what the candidates' targets read of the moving average."""
    batch = {key: x.to(subject.device) for key, x in batch.items()}
    for candidate in made:
        batch = candidate.alignment.prepare(batch, subject.ema)
    return batch


@torch.no_grad()
def hidden_at_tap(subject: Subject, batch: Batch) -> Tensor:
    """(B,T,D) hidden states at the tap."""
    x_t = interpolate(batch["latent"], batch["noise"], batch["t"])
    _, hidden = subject.checkpoint.model.forward_with_taps(x_t, batch["t"], batch["label"], taps=(subject.tap,), stop=True)
    return hidden[subject.tap]


def fit(subject: Subject, options: Options, made: list[Candidate]) -> dict[str, float]:
    """Fits every candidate's projector (but the checkpoint's own) on frozen hidden states of the train split; name -> final loss.

    The final loss is the mean over the last tenth of the steps.
    """
    to_fit = [c for c in made if c.projector == "fit"]
    subject.checkpoint.model.to(subject.device)
    optimizer = torch.optim.AdamW([p for c in to_fit for p in c.alignment.projector.parameters()], lr=FIT_LR, weight_decay=0.0)
    split = subject.splits["train"]
    tail = max(1, options.fit_steps // 10)
    final = {c.name: 0.0 for c in to_fit}
    bar = tqdm(range(options.fit_steps), desc="fitting projectors", unit="step", mininterval=1.0, leave=False)
    for step in bar:
        samples = np.arange(step * FIT_BATCH, (step + 1) * FIT_BATCH, dtype=np.int64)
        index = order.image_of(samples, split.size, options.seed)
        drawn = draws.draw(options.seed, "fit", samples, subject.header.latent_shape)
        batch = ready(subject, to_fit, assemble(split, index, drawn, drawn.u, subject.groups))
        others = draws.draw(options.seed, "fit", samples + REPEAT, subject.header.latent_shape)  # another noise as well
        shuffled = ready(subject, to_fit, assemble(split, another_image(index, split.size), others, drawn.u, subject.groups))
        h_BTD = hidden_at_tap(subject, batch)
        each = {c.name: c.loss(h_BTD, c.target_BTC(batch, shuffled, h_BTD)).mean() for c in to_fit}
        optimizer.param_groups[0]["lr"] = FIT_LR * 0.5 * (1 + np.cos(np.pi * step / options.fit_steps))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(each.values())).sum().backward()
        optimizer.step()
        if step >= options.fit_steps - tail:
            for name, loss in each.items():
                final[name] += loss.item() / tail
    return final
