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
from torch import Tensor
from tqdm import tqdm

from gsnr.probes.common.subject import Options, Subject
from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import resolve_alignment
from gsnr.train.data import permutation, rng
from gsnr.train.data.batches import Batch, assemble
from gsnr.train.data.heldout import REPEAT, another_image
from gsnr.train.interpolant import interpolate
from gsnr.train.objective import make_alignment
from gsnr.train.priors.layers import CACHED, GROUPS

FIT_BATCH, FIT_LR = 64, 1e-3  # peak rate; half a cosine to zero, so that the last steps do not jitter about the optimum
CONSTANT_BATCHES = 8  # of FIT_BATCH train images, whose mean target is the constant control
NONE, SHUFFLED, CONSTANT = "none", "shuffled", "constant"
CONTROLS = (SHUFFLED, CONSTANT)
FIT, CKPT, FRESH = "fit", "ckpt", "fresh"
PROJECTORS = (FIT, CKPT, FRESH)
UNIFORM = {"G1": ("G1",), "G2": ("G2",), **{part: (group,) for part, group in CACHED.items()}, "both": tuple(CACHED.values()), "G1-G4": GROUPS}
USUAL = ("own", "uniform_mid", "uniform_deep")
Step = tuple[Batch, Batch, Tensor]  # a batch, other images with other noise at the same times, hidden states of the batch


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A target with a projector of its own.

    control: "none"; "shuffled" where the target is that of another image; "constant" where it is one vector, the mean target of train images.
    projector: "fit" (by `fit`), "ckpt" (the checkpoint's own) or "fresh" (as it is initialised).
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

    def target_BTC(self, batch: Batch, shuffled: Batch, h_BTD: Tensor) -> Tensor:
        """The target of a batch whose hidden states are h; `shuffled` holds other images, with other noise, at the same times."""
        if self.constant_C is not None:
            return self.constant_C.expand(*h_BTD.shape[:2], -1)
        return self.alignment.target(shuffled if self.control == SHUFFLED else batch, h_BTD).detach()

    def loss(self, h_BTD: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,): the alignment's own discrepancy between the projected hidden state and a target."""
        return self.alignment.discrepancy(self.alignment.projector(h_BTD), target_BTC)


def own_target(subject: Subject) -> tuple[str, dict[str, Any], AlignmentModule] | None:
    """(name, options, module) of what hidden states at `subject.tap` were aligned to, in the checkpoint or in that of --router; None for no
    alignment."""
    alignment = subject.aligned.alignment
    if not alignment.parts:
        return None
    options = subject.aligned.config.alignment
    first = options["parts"][0] if options["name"] == "multi" else options
    name = f"uniform_{first['source']}" if first["name"] == "uniform" else first["name"]
    return name, first, alignment.parts[0]


def available(subject: Subject) -> dict[str, dict[str, Any]]:
    """target -> options of its alignment: the checkpoint's own first, then all that its data allow.

    Uniform targets take what is not the target from the checkpoint's alignment, where that is one of VAE features; the others have their own head.
    REPA's is 2048 wide from B on, and in proportion (8/3 of the model's width) below.
    """
    own, groups = own_target(subject), subject.header.groups.keys()
    shared = {key: own[1][key] for key in ("features", "loss", "projector") if own and "source" in own[1]}
    split = {"split": own[1]["split"]} if own and own[1].get("split") else {}
    made: dict[str, dict[str, Any]] = {}
    for source, needs in UNIFORM.items():
        if groups >= set(needs):
            made[f"uniform_{source}"] = {"name": "uniform", "source": source} | shared | (split if set(CACHED.values()) & set(needs) else {})
    made |= {name: {"name": name} for name in ("sra", "sra2")}
    if "teacher" in groups:
        made |= {
            "repa": {"name": "repa", "projector_width": min(2048, subject.checkpoint.config.model.hidden_size * 8 // 3)},
            "irepa": {"name": "irepa"},
        }
    made = {name: resolve_alignment(options | {"tap": subject.tap}, subject.checkpoint.config.model) for name, options in made.items()}
    return made if own is None else {own[0]: own[1]} | {name: options for name, options in made.items() if name != own[0]}


def chosen(subject: Subject, asked: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The targets asked for, by name; "own" is the checkpoint's, "all" all of them; () the usual ones that there are.

    Raises ValueError listing what there is.
    """
    options, own = available(subject), own_target(subject)
    if asked == ("all",):
        return options
    names = [own[0] if name == "own" and own else name for name in asked or USUAL]
    for name in names:
        if name not in options and asked:
            why = f"{subject.checkpoint.folder} is aligned to nothing" if name == "own" else "it does not exist, or the data lack its features"
            raise ValueError(f"--targets {name}: {why}; choose from all, own, {', '.join(options)}")
    return {name: options[name] for name in dict.fromkeys(names) if name in options}


def check(subject: Subject, options: Options) -> None:
    """Raises ValueError for targets, controls or projectors that there are not."""
    for flag, asked, valid in (("--controls", options.controls, CONTROLS), ("--projector", options.projectors, PROJECTORS)):
        for name in asked:
            if name not in valid:
                raise ValueError(f"{flag} {name!r} does not exist; choose from {', '.join(valid)}")
    targets, own = chosen(subject, options.targets), own_target(subject)
    if set(options.projectors) == {CKPT} and (own is None or own[0] not in targets or subject.router is not None):
        raise ValueError(f"--projector ckpt: {subject.checkpoint.folder} has none for the targets {', '.join(targets)}; choose fit")


def candidates(subject: Subject, options: Options) -> list[Candidate]:
    """For each kind of projector the targets, and the controls of the first of them; with the checkpoint's projector its own target alone."""
    c, own, targets = subject.checkpoint, own_target(subject), chosen(subject, options.targets)

    def fresh(name: str) -> AlignmentModule:
        """A target as it is in the checkpoint (its router, say), with a newly initialised projector."""
        torch.manual_seed(options.seed)
        made = make_alignment(targets[name], c.config.model, subject.header.groups)
        made.calibrate(subject.splits["train"])
        if own is not None and name == own[0]:
            of_another_vae = subject.aligned.header is not None and subject.aligned.header.vae != subject.header.vae
            left = ("projector.", "normaliser.") if of_another_vae else ("projector.",)
            learned = {key: value for key, value in own[2].state_dict().items() if not key.startswith(left)}
            made.load_state_dict(learned, strict=False)
        return made.to(subject.device)

    made = []
    for projector in options.projectors:
        trained = [own[0]] if own is not None and own[0] in targets and subject.router is None else []
        names = trained if projector == CKPT else list(targets)
        for name, control in [*((name, NONE) for name in names), *((name, control) for name in names[:1] for control in options.controls)]:
            assert own is not None or projector != CKPT
            alignment = copy.deepcopy(own[2]).to(subject.device) if own is not None and projector == CKPT else fresh(name)
            one = Candidate(target=name, control=control, projector=projector, alignment=alignment)
            made.append(one if control != CONSTANT else with_constant(subject, options, one))
    return made


@torch.no_grad()
def with_constant(subject: Subject, options: Options, candidate: Candidate) -> Candidate:
    """The candidate whose target is the mean of its targets over train images, tokens and times."""
    steps = fit_steps(subject, options.seed, [candidate], CONSTANT_BATCHES)
    means = [candidate.alignment.target(batch, h_BTD).double().mean((0, 1)) for batch, _, h_BTD in steps]
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


def fit(subject: Subject, options: Options, made: list[Candidate]) -> dict[str, float]:
    """Fits the projectors of the candidates that want it on frozen hidden states of the train split; name -> final loss.

    The final loss is the mean over the last tenth of the steps.
    """
    to_fit = [c for c in made if c.projector == FIT]
    if not to_fit:
        return {}
    optimizer = torch.optim.AdamW([p for c in to_fit for p in c.alignment.projector.parameters()], lr=FIT_LR, weight_decay=0.0)
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
