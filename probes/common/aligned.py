"""Alignment gradients of several targets, bin by bin, on identical images, times and noise: what `alignment` and `vae_swap` measure.

Each loss is one alignment loss alone. Its gradient is zero above the tap. Group "all" is the backbone up to the tap: patch and time embedders
and blocks 1..k; each block, attention, MLP and adaLN of these blocks, the embedders, the label embedding and the projector are groups too. On
the same samples and parameters the gradient of the denoising loss is measured, once for all of them, and the angle between the two means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gsnr
from gsnr.probes.common import floor
from gsnr.probes.common.candidates import Candidate, candidates, with_constants
from gsnr.probes.common.descent import KEY as DESCENTS
from gsnr.probes.common.easy import Easiness
from gsnr.probes.common.fit import fit, means
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.samples import CONDITION, HIDDEN, Samples, target_of
from gsnr.probes.common.subject import Subject, bin_columns, sample_rows, variance_rows
from gsnr.table import NAN, estimate_columns
from gsnr.train import parameter_groups
from gsnr.train.data.batches import Batch
from gsnr.train.interpolant import velocity_loss
from gsnr.train.models.backbone import Backbone

Outputs = tuple[Tensor | None, dict[int, Tensor]]


def heads_of(made: list[Candidate]) -> list[nn.Module]:
    """What each candidate trains beside the backbone."""
    return [c.aligned.projector if c.aligned is not None else c.alignment for c in made]


class Aligned(nn.Module):
    """The backbone and the trained parts of several alignments: the parameters that an alignment gradient can reach."""

    def __init__(self, sit: Backbone, made: list[Candidate], tap: int) -> None:
        super().__init__()
        self.sit, self.tap = sit, tap
        self.taps = tuple(dict.fromkeys([tap, *(k for c in made for k in c.alignment.extra_taps)]))
        self.projectors = nn.ModuleList(heads_of(made))

    def outputs(self, batch: Batch) -> Outputs:
        """(velocity, {tap: h_BTD}), with the other blocks that a candidate reads."""
        velocity, hidden = self.sit.forward_with_taps(batch["x"], batch["t"], batch[CONDITION], taps=self.taps, extra=batch.get("extra"))
        return velocity[0] if isinstance(velocity, tuple) else velocity, hidden


def _outputs(model: nn.Module, batch: Batch) -> Outputs:
    assert isinstance(model, Aligned)
    return model.outputs(batch)


def _denoising_loss(model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor:
    """(B,): as in training."""
    velocity, _ = outputs
    assert velocity is not None
    return velocity_loss(velocity, batch["velocity"])


def _alignment_loss(k: int, candidate: Candidate) -> Callable[[nn.Module, Batch, Outputs], Tensor]:
    """Of candidate k: (B,) by its discrepancy from the target in the batch; an alignment without a target has its own loss of the hidden states."""
    aligned = candidate.aligned

    def loss(model: nn.Module, batch: Batch, outputs: Outputs) -> Tensor:
        assert isinstance(model, Aligned)
        if aligned is None:
            return candidate.alignment.loss(outputs[1], batch)
        return aligned.discrepancy(model.projectors[k](outputs[1][model.tap]), batch[target_of(k)])

    return loss


def group_of(name: str, tap: int) -> tuple[str, ...]:
    """The groups of a parameter of `Aligned`; () for one above the tap."""
    part, _, rest = name.partition(".")
    return ("projector",) if part == "projectors" else parameter_groups.groups_of(rest, tap)


def size_of(subject: Subject, candidate: Candidate) -> int:
    """Parameters that the gradient is taken with respect to."""
    model = Aligned(subject.checkpoint.model, [candidate], subject.tap)
    return sum(p.numel() for name, p in model.named_parameters() if group_of(name, subject.tap))


def _cell(comparison: gsnr.Comparison, batch_ref: int) -> dict[str, Any]:
    """The columns of one group that are measured."""
    low, high = comparison.cosine_ci()
    return estimate_columns(comparison.a, batch_ref) | {
        "draws": comparison.a.draws,
        "cos_denoise": comparison.cosine,
        "cos_low": low,
        "cos_high": high,
        "gsnr_constructive": comparison.constructive,
    }


def measure(subject: Subject, options: TargetOptions, made: list[Candidate], samples: Samples) -> dict[str, gsnr.ComparisonResult]:
    """By the candidates' names, the alignment gradient of each against the denoising gradient, over the samples of one bin."""
    model = Aligned(subject.checkpoint.model, made, subject.tap).to(subject.device).eval()
    return gsnr.compare(
        model,
        {candidate.name: _alignment_loss(k, candidate) for k, candidate in enumerate(made)},
        _denoising_loss,
        samples,
        engine=options.engine,
        precision=options.precision,
        parameters=lambda name: bool(group_of(name, subject.tap)),
        groups=lambda name: group_of(name, subject.tap),
        common=_outputs,
        draws=options.draws,
        index="image",
    )


def _save(result: gsnr.Result, k: int, path: Path) -> None:
    """The sums of candidate k, without the projectors of the others."""
    own = f"projectors.{k}."
    names = {name: name.replace(own, "projector.") for name in result.moments.labels if name.startswith(("sit.", own))}
    replace(result, moments=result.moments.named(names)).save(path)


@torch.no_grad()
def _reached(
    options: TargetOptions, made: list[Candidate], mean: dict[str, Tensor], samples: Samples, shared: dict[str, Any]
) -> tuple[list[dict[str, Any]], set[str], list[float]]:
    """For each candidate what its projector and what a constant vector reach of the targets of one bin, as rows; the names of those whose
    projector reaches less than the mean target; and the images' t, the mean over their draws."""
    with_targets = {k: candidate for k, candidate in enumerate(made) if candidate.aligned is not None}
    easiness = {c.name: Easiness() for c in with_targets.values()}
    losses: dict[str, list[tuple[Tensor, Tensor]]] = {c.name: [] for c in with_targets.values()}
    t_N: list[float] = []
    for batch in samples:
        t_N += batch["t"].view(-1, options.draws).mean(1).tolist()
        for k, c in with_targets.items():
            assert c.aligned is not None
            target, projected = batch[target_of(k)], c.aligned.projector(batch[HIDDEN])
            easiness[c.name].add(target, projected)
            constant = mean[c.target].to(target).expand_as(target)
            losses[c.name].append((c.aligned.discrepancy(projected, target), c.aligned.discrepancy(constant, target)))
    rows, short = [], set()
    for c in with_targets.values():
        loss_N, constant_N = (torch.cat(column).view(-1, options.draws).mean(1) for column in zip(*losses[c.name], strict=True))
        key = shared | c.which | {"group": "target"}
        rows += easiness[c.name].rows(key)
        rows.append(key | {"metric": "constant_loss", "value": float(constant_N.mean()), "low": NAN, "high": NAN})
        if floor.underfit(loss_N, constant_N):
            short.add(c.name)
    return rows, short, t_N


def _bin(
    subject: Subject, options: TargetOptions, probe: str, made: list[Candidate], mean: dict[str, Tensor], index: int, bar: tqdm, sums: Path | None
) -> Rows:
    """All targets in one bin, on the same images, times and noise."""
    low, high = options.edges(index)
    shared = subject.columns(probe, options) | bin_columns(index, low, high)
    samples = Samples(subject, options, made, low, high)
    metrics, short, t_N = _reached(options, made, mean, samples, shared)
    rows: Rows = {"cells": [], "samples": [], "metrics": metrics}
    estimates: dict[str, dict[str, gsnr.Estimate]] = {}
    results = measure(subject, options, made, samples)
    for k, candidate in enumerate(made):
        result = results[candidate.name]
        if sums is not None:
            _save(result.a, k, sums / f"{'-'.join(candidate.which.values())}-bin{index}.safetensors")
        labels = [label for label in result.groups if label != "all"]  # embraces projector and labels; the table's "all" is the backbone
        estimates[candidate.name] = {label: result[label].a for label in labels}
        for label in labels:
            estimate = result[label].a
            here = shared | candidate.which | {"group": parameter_groups.in_table(label)}
            known = {"loss": result.a.loss, "engine": result.a.engine, "underfit": candidate.name in short}
            rows["cells"].append(here | _cell(result[label], options.batch_ref) | known)
            rows["metrics"] += variance_rows(here, estimate)
            rows["samples"] += sample_rows(here, subject.images(options), t_N, result.a.losses.tolist(), estimate)
    bar.update(len(made))
    places = [(candidate, label) for candidate in made for label in estimates[candidate.name]]
    for cell, (candidate, label) in zip(rows["cells"], places, strict=True):
        cell |= floor.columns(candidate, made, estimates, label)
    return rows


def _fitted(subject: Subject, options: TargetOptions, made: list[Candidate], resume: ResumeCache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fits the projectors, or takes up what was fitted before; (target -> its mean, what the notes say of each fit)."""
    heads = {i: c.head for i, c in enumerate(made) if c.head is not None}

    def make() -> dict[str, Tensor]:
        mean = means(subject, options.seed, made)
        how = fit(subject, options, made, mean, resume)
        weights = {f"{i}|{name}": x for i, head in heads.items() for name, x in head.state_dict().items()}
        said = json.dumps({name: asdict(fitted) for name, fitted in how.items()}).encode()
        return weights | {f"mean|{target}": x for target, x in mean.items()} | {"how": torch.tensor(list(said), dtype=torch.uint8)}

    kept = resume.tensors("projectors", make)
    resume.drop(DESCENTS)
    for i, head in heads.items():
        head.load_state_dict({key.partition("|")[2]: x for key, x in kept.items() if key.startswith(f"{i}|")})
    mean = {key.partition("|")[2]: x.to(subject.device) for key, x in kept.items() if key.startswith("mean|")}
    return mean, json.loads(bytes(kept["how"].tolist()))


def measure_all(subject: Subject, options: TargetOptions, probe: str, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "cells", "samples" and "metrics" for every candidate; notes: how the projectors were fitted."""
    made = candidates(subject, options)
    mean, how = _fitted(subject, options, made, resume)
    made = with_constants(made, mean)
    rows: Rows = {"cells": [], "samples": [], "metrics": []}
    with tqdm(total=options.bins * len(made), desc=probe, unit="cell", mininterval=0.5, leave=False) as bar:
        for index in range(options.bins):
            of_bin = resume.rows(f"bin{index}", partial(_bin, subject, options, probe, made, mean, index, bar, sums))
            bar.update((index + 1) * len(made) - bar.n)
            for kind, values in of_bin.items():
                rows[kind] += values
    notes = {"projector_fit": how, "tap": subject.tap, "alignments_left_out": max(0, len(subject.checkpoint.alignment.parts) - 1)}
    return rows, notes
