"""Alignment gradients of several targets, bin by bin, on identical images, times and noise: what `alignment` and `vae_swap` measure.

The loss is the alignment loss alone. Its gradient is zero above the tap, so the forward stops there. Group "all" is the backbone up to
the tap: patch and time embedders and blocks 1..k; each block, attention, MLP and adaLN of these blocks, the embedders, the label embedding
and the projector are groups too. On the same samples and parameters the gradient of the denoising loss is measured, and the angle between
the two means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

import gsnr
from gsnr.probes.common import floor
from gsnr.probes.common.candidates import Candidate, candidates, groups_of, hidden_at_tap, partners_of, ready, with_constants
from gsnr.probes.common.easy import Easiness
from gsnr.probes.common.fit import fit, means
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns, sample_rows, variance_rows
from gsnr.table import NAN, estimate_columns
from gsnr.train import parameter_groups
from gsnr.train.data.batches import Batch
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.interpolant import interpolate, velocity, velocity_loss
from gsnr.train.models.sit import SiT


class Aligned(nn.Module):
    """The backbone and an alignment's trained parts: the parameters that an alignment gradient can reach. Its forward is the alignment loss, (B,).

    In place of a target's own, `batch["target"]` is aligned to; an alignment without a target has its own loss of the hidden state."""

    def __init__(self, sit: SiT, candidate: Candidate, tap: int) -> None:
        super().__init__()
        self.sit, self.tap, self.aligned = sit, tap, candidate.aligned is not None
        self.projector = candidate.aligned.projector if candidate.aligned is not None else candidate.alignment
        self.distance = candidate.aligned.discrepancy if candidate.aligned is not None else candidate.alignment.loss

    def forward(self, batch: Batch) -> Tensor:
        _, hidden = self.sit.forward_with_taps(batch["x"], batch["t"], batch["label"], taps=(self.tap,), stop=True)
        if not self.aligned:
            return self.distance(hidden, batch)  # type: ignore[arg-type]
        return self.distance(self.projector(hidden[self.tap]), batch["target"])  # type: ignore[arg-type]

    def denoising_loss(self, batch: Batch) -> Tensor:
        """(B,): as in training."""
        return velocity_loss(self.sit.forward(batch["x"], batch["t"], batch["label"]), batch["velocity"])


def group_of(name: str, tap: int) -> tuple[str, ...]:
    """The groups of a parameter of `Aligned`; () for one above the tap."""
    part, _, rest = name.partition(".")
    return ("projector",) if part == "projector" else parameter_groups.groups_of(rest, tap)


def size_of(subject: Subject, candidate: Candidate) -> int:
    """Parameters that the gradient is taken with respect to."""
    model = Aligned(subject.checkpoint.model, candidate, subject.tap)
    return sum(p.numel() for name, p in model.named_parameters() if group_of(name, subject.tap))


Pair = tuple[Batch, dict[str, Batch]]  # a batch; control -> other images with other noise at the same times


def _heldout(subject: Subject, options: TargetOptions, made: list[Candidate], low: float, high: float) -> list[Pair]:
    """The samples of one bin."""
    split = subject.splits["heldout"]

    def batches(partner_N: NDArray[np.int64] | None) -> Iterator[Batch]:
        drawn = heldout_batches(
            split,
            options.n_images,
            options.seed,
            "heldout",
            low,
            high,
            groups_of(made),
            repeats=options.draws,
            partner_N=partner_N,
            first=options.first_image,
        )
        return (ready(subject, made, batch) | {"image": torch.from_numpy(index).to(subject.device)} for index, batch in drawn)

    others = {control: list(batches(partner_N)) for control, partner_N in partners_of(split, options.seed, made).items()}
    return [(batch, {control: of_control[i] for control, of_control in others.items()}) for i, batch in enumerate(batches(None))]


def _batches(subject: Subject, candidate: Candidate, pairs: list[Pair]) -> Iterator[Batch]:
    for batch, others in pairs:
        x = interpolate(batch["latent"], batch["noise"], batch["t"])
        inputs = {key: batch[key] for key in ("t", "label", "image")} | {"x": x, "velocity": velocity(batch["latent"], batch["noise"])}
        if candidate.aligned is None:
            yield batch | inputs
        else:
            yield inputs | {"target": candidate.target_BTC(batch, others, hidden_at_tap(subject, batch))}


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


def _denoising_loss(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(model, Aligned)
    return model.denoising_loss(batch)


def measure(subject: Subject, options: TargetOptions, candidate: Candidate, pairs: list[Pair]) -> gsnr.ComparisonResult:
    """The alignment gradient of one target against the denoising gradient, over the samples of one bin."""
    model = Aligned(subject.checkpoint.model, candidate, subject.tap).to(subject.device).eval()
    return gsnr.compare(
        model,
        lambda m, batch: m(batch),
        _denoising_loss,
        list(_batches(subject, candidate, pairs)),
        engine=options.engine,
        precision=options.precision,
        parameters=lambda name: bool(group_of(name, subject.tap)),
        groups=lambda name: group_of(name, subject.tap),
        draws=options.draws,
        index="image",
    )


@torch.no_grad()
def _reached(
    subject: Subject, options: TargetOptions, made: list[Candidate], mean: dict[str, Tensor], pairs: list[Pair], shared: dict[str, Any]
) -> tuple[list[dict[str, Any]], set[str]]:
    """For each candidate what its projector and what a constant vector reach of the targets of one bin, as rows; and the names of those whose
    projector reaches less than the mean target."""
    with_targets = [candidate for candidate in made if candidate.aligned is not None]
    easiness = {c.name: Easiness() for c in with_targets}
    losses: dict[str, list[tuple[Tensor, Tensor]]] = {c.name: [] for c in with_targets}
    for batch, others in pairs:
        h_BTD = hidden_at_tap(subject, batch)
        for c in with_targets:
            assert c.aligned is not None
            target, projected = c.target_BTC(batch, others, h_BTD), c.aligned.projector(h_BTD)
            easiness[c.name].add(target, projected)
            constant = mean[c.target].to(target).expand_as(target)
            losses[c.name].append((c.aligned.discrepancy(projected, target), c.aligned.discrepancy(constant, target)))
    rows, short = [], set()
    for c in with_targets:
        loss_N, constant_N = (torch.cat(column).view(-1, options.draws).mean(1) for column in zip(*losses[c.name], strict=True))
        key = shared | c.which | {"group": "target"}
        rows += easiness[c.name].rows(key)
        rows.append(key | {"metric": "constant_loss", "value": float(constant_N.mean()), "low": NAN, "high": NAN})
        if floor.underfit(loss_N, constant_N):
            short.add(c.name)
    return rows, short


def _bin(
    subject: Subject, options: TargetOptions, probe: str, made: list[Candidate], mean: dict[str, Tensor], index: int, bar: tqdm, sums: Path | None
) -> Rows:
    """All targets in one bin, on the same images, times and noise."""
    low, high = options.edges(index)
    shared = subject.columns(probe, options) | bin_columns(index, low, high)
    pairs = _heldout(subject, options, made, low, high)
    metrics, short = _reached(subject, options, made, mean, pairs, shared)
    rows: Rows = {"cells": [], "samples": [], "metrics": metrics}
    t_N = torch.cat([batch["t"] for batch, _ in pairs]).view(-1, options.draws).mean(1).tolist()
    estimates: dict[str, dict[str, gsnr.Estimate]] = {}
    for candidate in made:
        result = measure(subject, options, candidate, pairs)
        if sums is not None:
            result.a.save(sums / f"{'-'.join(candidate.which.values())}-bin{index}.safetensors")
        labels = [label for label in result.groups if label != "all"]  # embraces projector and labels; the table's "all" is the backbone
        estimates[candidate.name] = {label: result[label].a for label in labels}
        for label in labels:
            estimate = result[label].a
            here = shared | candidate.which | {"group": parameter_groups.in_table(label)}
            known = {"loss": result.a.loss, "engine": result.a.engine, "underfit": candidate.name in short}
            rows["cells"].append(here | _cell(result[label], options.batch_ref) | known)
            rows["metrics"] += variance_rows(here, estimate)
            rows["samples"] += sample_rows(here, subject.images(options), t_N, result.a.losses.tolist(), estimate)
        bar.update()
    places = [(candidate, label) for candidate in made for label in estimates[candidate.name]]
    for cell, (candidate, label) in zip(rows["cells"], places, strict=True):
        cell |= floor.columns(candidate, made, estimates, label)
    return rows


def _fitted(subject: Subject, options: TargetOptions, made: list[Candidate], resume: ResumeCache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fits the projectors, or takes up what was fitted before; (target -> its mean, what the notes say of each fit)."""
    heads = {i: c.head for i, c in enumerate(made) if c.head is not None}

    def make() -> dict[str, Tensor]:
        mean = means(subject, options.seed, made)
        how = fit(subject, options, made, mean)
        weights = {f"{i}|{name}": x for i, head in heads.items() for name, x in head.state_dict().items()}
        said = json.dumps({name: asdict(fitted) for name, fitted in how.items()}).encode()
        return weights | {f"mean|{target}": x for target, x in mean.items()} | {"how": torch.tensor(list(said), dtype=torch.uint8)}

    kept = resume.tensors("projectors", make)
    for i, head in heads.items():
        head.load_state_dict({key.partition("|")[2]: x for key, x in kept.items() if key.startswith(f"{i}|")})
    mean = {key.partition("|")[2]: x.to(subject.device) for key, x in kept.items() if key.startswith("mean|")}
    return mean, json.loads(bytes(kept["how"].tolist()))


def measure_all(subject: Subject, options: TargetOptions, probe: str, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "cells", "samples" and "metrics" for every candidate; notes: how the projectors were fitted."""
    subject.checkpoint.model.to(subject.device)
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
