"""Alignment gradients of several targets, bin by bin, on identical images, times and noise: what `alignment` and `vae_swap` measure.

The loss is the alignment loss alone. Its gradient is zero above the tap, so the forward stops there. Group "all" is the backbone up to
the tap: patch and time embedders and blocks 1..k; each block, attention, MLP and adaLN of these blocks, the embedders, the label embedding
and the projector are groups too. On the same samples and parameters the gradient of the denoising loss is measured, and the angle between
the two means.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gsnr
from gsnr.probes.common.easy import Easiness
from gsnr.probes.common.fit import FIT_BATCH, FIT_LR, Candidate, candidates, fit, groups_of, hidden_at_tap, ready
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns, sample_rows, variance_rows
from gsnr.table import estimate_columns
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


def _heldout(subject: Subject, options: TargetOptions, made: list[Candidate], low: float, high: float) -> list[tuple[Batch, Batch]]:
    """(batch, other images with other noise at the same times) of one bin."""

    def batches(shuffled: bool) -> Iterator[Batch]:
        split, groups = subject.splits["heldout"], groups_of(made)
        drawn = heldout_batches(
            split,
            options.n_images,
            options.seed,
            "heldout",
            low,
            high,
            groups,
            repeats=options.draws,
            shuffled=shuffled,
            first=options.first_image,
        )
        return (ready(subject, made, batch) for _, batch in drawn)

    return list(zip(batches(False), batches(True), strict=True))


def _batches(subject: Subject, candidate: Candidate, pairs: list[tuple[Batch, Batch]]) -> Iterator[Batch]:
    for batch, shuffled in pairs:
        x = interpolate(batch["latent"], batch["noise"], batch["t"])
        inputs = {"x": x, "t": batch["t"], "label": batch["label"], "velocity": velocity(batch["latent"], batch["noise"])}
        if candidate.aligned is None:
            yield batch | inputs
        else:
            yield inputs | {"target": candidate.target_BTC(batch, shuffled, hidden_at_tap(subject, batch))}


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


def measure(subject: Subject, options: TargetOptions, candidate: Candidate, pairs: list[tuple[Batch, Batch]]) -> gsnr.ComparisonResult:
    """The alignment gradient of one target against the denoising gradient, over the samples of one bin."""
    model = Aligned(subject.checkpoint.model, candidate, subject.tap).to(subject.device).eval()
    return gsnr.compare(
        model,
        lambda m, batch: m(batch),
        _denoising_loss,
        list(_batches(subject, candidate, pairs)),
        engine=options.engine,
        parameters=lambda name: bool(group_of(name, subject.tap)),
        groups=lambda name: group_of(name, subject.tap),
        draws=options.draws,
    )


@torch.no_grad()
def _easiness(subject: Subject, made: list[Candidate], pairs: list[tuple[Batch, Batch]], shared: dict[str, Any]) -> list[dict[str, Any]]:
    """For each candidate, what its projector and what a constant vector reach of the targets of one bin."""
    easiness = [(candidate, Easiness()) for candidate in made if candidate.aligned is not None]
    for batch, shuffled in pairs:
        h_BTD = hidden_at_tap(subject, batch)
        for candidate, sums in easiness:
            assert candidate.aligned is not None
            sums.add(candidate.target_BTC(batch, shuffled, h_BTD), candidate.aligned.projector(h_BTD))
    return [row for candidate, sums in easiness for row in sums.rows(shared | candidate.which | {"group": "target"})]


def _bin(subject: Subject, options: TargetOptions, probe: str, made: list[Candidate], index: int, bar: tqdm, sums: Path | None) -> Rows:
    """All targets in one bin, on the same images, times and noise."""
    low, high = options.edges(index)
    shared = subject.columns(probe, options) | bin_columns(index, low, high)
    pairs = _heldout(subject, options, made, low, high)
    rows: Rows = {"cells": [], "samples": [], "metrics": _easiness(subject, made, pairs, shared)}
    t_N = torch.cat([batch["t"] for batch, _ in pairs]).view(-1, options.draws).mean(1).tolist()
    for candidate in made:
        result = measure(subject, options, candidate, pairs)
        if sums is not None:
            result.a.save(sums / f"{'-'.join(candidate.which.values())}-bin{index}.safetensors")
        for label in result.groups:
            if label == "all":  # embraces projector and labels; the table's "all" is the backbone
                continue
            estimate = result[label].a
            here = shared | candidate.which | {"group": parameter_groups.in_table(label)}
            rows["cells"].append(here | _cell(result[label], options.batch_ref) | {"loss": result.a.loss, "engine": result.a.engine})
            rows["metrics"] += variance_rows(here, estimate)
            rows["samples"] += sample_rows(here, options.images, t_N, result.a.losses.tolist(), estimate)
        bar.update()
    return rows


def measure_all(subject: Subject, options: TargetOptions, probe: str, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "cells", "samples" and "metrics" for every candidate; notes: how the projectors were fitted and the loss
    they ended at."""
    made = candidates(subject, options)

    heads = {i: c.head for i, c in enumerate(made) if c.head is not None}

    def fitted() -> dict[str, Tensor]:
        losses = fit(subject, options, made)
        weights = {f"{i}|{name}": x for i, head in heads.items() for name, x in head.state_dict().items()}
        return weights | {"final_loss": torch.tensor([losses[made[i].name] for i in heads], dtype=torch.float64)}

    kept = resume.tensors("projectors", fitted)
    for i, head in heads.items():
        head.load_state_dict({key.partition("|")[2]: x for key, x in kept.items() if key.startswith(f"{i}|")})
    final = dict(zip((made[i].name for i in heads), kept["final_loss"].tolist(), strict=True))
    rows: Rows = {"cells": [], "samples": [], "metrics": []}
    with tqdm(total=options.bins * len(made), desc=probe, unit="cell", mininterval=0.5, leave=False) as bar:
        for index in range(options.bins):
            of_bin = resume.rows(f"bin{index}", partial(_bin, subject, options, probe, made, index, bar, sums))
            bar.update((index + 1) * len(made) - bar.n)
            for kind, values in of_bin.items():
                rows[kind] += values
    notes = {"projector_fit": {"steps": options.fit_steps, "batch": FIT_BATCH, "lr": FIT_LR, "final_loss": final}, "tap": subject.tap}
    notes["alignments_left_out"] = max(0, len(subject.checkpoint.alignment.parts) - 1)
    return rows, notes
