"""Candidates for a comparison of alignment targets, and the one procedure by which their projectors are fitted.

Every candidate's projector learns from the same frozen hidden states: same train images, times, noise, steps and rate; the candidates
differ in their targets alone. Shapes: B samples, T tokens, D width, C target channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probes._subject import Options, Subject
from train.alignments import AlignmentModule
from train.data import draws, order
from train.data.batches import Batch, assemble
from train.data.heldout import another_image
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

    def target_BTC(self, batch: Batch, shuffled: Batch) -> Tensor:
        """The target of a batch; `shuffled` holds the features of other images for the same samples."""
        return self.alignment.target(shuffled if self.control == SHUFFLED else batch, batch["t"]).detach()

    def loss(self, h_BTD: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,): the alignment's own discrepancy between the projected hidden state and a target."""
        return self.alignment.discrepancy(self.alignment.projector(h_BTD), target_BTC)


def own_target(subject: Subject) -> str | None:
    """What the checkpoint itself was aligned to, by the names of this module; None for no alignment."""
    options = subject.checkpoint.config.alignment
    if options["name"] == "uniform":
        return f"uniform_{options['source']}"
    return None if options["name"] == "none" else options["name"]


def candidates(subject: Subject, seed: int) -> list[Candidate]:
    """The checkpoint's own target, uniform mid, uniform deep, and the own target shuffled (uniform mid where there is none), each with a
    projector to be fitted; and the own target with the checkpoint's projector.

    The uniform targets take split, projector and tap from the checkpoint's alignment, so that they differ from it in the target alone.
    """
    c, own = subject.checkpoint, own_target(subject)
    shared = {key: value for key, value in c.config.alignment.items() if key in ("split", "projector")} | {"tap": subject.tap}
    options = {f"uniform_{source}": {"name": "uniform", "source": source} | shared for source in ("mid", "deep")}
    if own is not None:
        options = {own: c.config.alignment} | {name: o for name, o in options.items() if name != own}

    def fresh(name: str) -> AlignmentModule:
        """A target as it is in the checkpoint (its router, say), with a newly initialised projector."""
        torch.manual_seed(seed)
        made = make_alignment(options[name], c.config.model, subject.header.groups)
        if name == own:
            learned = {key: value for key, value in c.alignment.state_dict().items() if not key.startswith("projector.")}
            made.load_state_dict(learned, strict=False)
        return made.to(subject.device)

    first = next(iter(options))
    true = [Candidate(target=name, control=NONE, projector="fit", alignment=fresh(name)) for name in options]
    control = Candidate(target=first, control=SHUFFLED, projector="fit", alignment=fresh(first))
    if own is None:
        return [*true, control]
    as_trained = Candidate(target=own, control=NONE, projector="ckpt", alignment=copy.deepcopy(c.alignment).to(subject.device))
    return [*true, control, as_trained]


def with_shuffled(subject: Subject, split: str, index_N: np.ndarray, batch: Batch) -> Batch:
    """The same samples with the features of other images."""
    s = subject.splits[split]
    rows = s.take(another_image(index_N, s.size), subject.groups)
    return batch | {group: torch.from_numpy(rows[group]) for group in subject.groups}


def to_device(batch: Batch, device: str) -> Batch:
    return {key: x.to(device) for key, x in batch.items()}


def fit(subject: Subject, options: Options, made: list[Candidate]) -> dict[str, float]:
    """Fits every candidate's projector (but the checkpoint's own) on frozen hidden states of the train split; name -> final loss.

    The final loss is the mean over the last tenth of the steps.
    """
    to_fit = [c for c in made if c.projector == "fit"]
    model = subject.checkpoint.model.to(subject.device)
    optimizer = torch.optim.AdamW([p for c in to_fit for p in c.alignment.projector.parameters()], lr=FIT_LR, weight_decay=0.0)
    split = subject.splits["train"]
    tail = max(1, options.fit_steps // 10)
    final = {c.name: 0.0 for c in to_fit}
    bar = tqdm(range(options.fit_steps), desc="fitting projectors", unit="step", mininterval=1.0, leave=False)
    for step in bar:
        samples = np.arange(step * FIT_BATCH, (step + 1) * FIT_BATCH, dtype=np.int64)
        index = order.image_of(samples, split.size, options.seed)
        drawn = draws.draw(options.seed, "fit", samples, subject.header.latent_shape)
        plain = assemble(split, index, drawn, drawn.u, subject.groups)
        shuffled = to_device(with_shuffled(subject, "train", index, plain), subject.device)
        batch = to_device(plain, subject.device)
        with torch.no_grad():
            x_t = interpolate(batch["latent"], batch["noise"], batch["t"])
            _, hidden = model.forward_with_taps(x_t, batch["t"], batch["label"], taps=(subject.tap,), stop=True)
        each = {c.name: c.loss(hidden[subject.tap], c.target_BTC(batch, shuffled)).mean() for c in to_fit}
        optimizer.param_groups[0]["lr"] = FIT_LR * 0.5 * (1 + np.cos(np.pi * step / options.fit_steps))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(each.values())).sum().backward()
        optimizer.step()
        if step >= options.fit_steps - tail:
            for name, loss in each.items():
                final[name] += loss.item() / tail
    return final
