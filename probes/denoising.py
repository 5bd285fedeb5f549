"""G-SNR of the denoising gradient itself over t, per parameter group: what an alignment gradient is compared with.

The loss is the velocity loss of training, on held-out images, in eval mode, no label dropped; of a model with a class token its loss too, on the
same samples, as target "class_token" (without its weight, which G-SNR does not see). Group "all" is the whole backbone: embedders, all blocks and
the final layer. Works for any checkpoint, aligned or not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gsnr
from gsnr.probes.common.floor import UNKNOWN
from gsnr.probes.common.options import GradientOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns, sample_rows, variance_rows
from gsnr.table import NAN, estimate_columns
from gsnr.train import parameter_groups
from gsnr.train.config import CLASS_TOKEN
from gsnr.train.data.batches import Batch
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.models.backbone import Backbone
from gsnr.train.noising import losses, noised

SUMMARY = "G-SNR of the denoising gradient per bin of t and parameter group"
KIND = "cells"
SCALES = ("bins", "n_images", "draws")
Options = GradientOptions
NOTHING = UNKNOWN | {"cos_denoise": NAN, "cos_low": NAN, "cos_high": NAN, "gsnr_constructive": NAN, "underfit": False}


def cannot(subject: Subject, options: Options) -> str | None:
    return None


def plan(subject: Subject, options: Options) -> list[str]:
    size = sum(p.numel() for p in subject.checkpoint.model.parameters())
    return [f"{options.bins} bins x {options.n_images} held-out images x {options.draws} draws: per-sample gradients of {size:,} parameters"]


def loss_of(name: str) -> Callable[[nn.Module, Batch], Tensor]:
    """One loss of training, (B,): "velocity" or "class_token"."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Backbone)
        x_t, extra = noised(model, batch)
        return losses(model(x_t, batch["t"], model.condition(batch), extra=extra), batch)[name]

    return loss


def _bin(subject: Subject, options: Options, place: int) -> Rows:
    low, high = options.edges(place)
    split, reads = subject.splits["heldout"], subject.checkpoint.config.model.reads
    drawn = heldout_batches(
        split, options.n_images, options.seed, "heldout", low, high, reads, batch=options.batch, repeats=options.draws, first=options.first_image
    )
    batches = [{key: x.to(subject.device) for key, x in (batch | {"image": torch.from_numpy(index)}).items()} for index, batch in drawn]
    rows: Rows = {"cells": [], "samples": [], "metrics": []}
    for target, name in {"denoising": "velocity", **({"class_token": "class_token"} if CLASS_TOKEN in reads else {})}.items():
        for kind, values in _measured(subject, options, place, batches, target, name).items():
            rows[kind] += values
    return rows


def _measured(subject: Subject, options: Options, place: int, batches: list[Batch], target: str, name: str) -> Rows:
    """One loss in one bin. target: as tables call it."""
    low, high = options.edges(place)
    model = subject.checkpoint.model.eval()
    result = gsnr.measure(
        model,
        loss_of(name),
        batches,
        engine=options.engine,
        precision=options.precision,
        groups=parameter_groups.groups_of,
        draws=options.draws,
        index="image",
    )
    t_N = torch.cat([batch["t"] for batch in batches]).view(-1, options.draws).mean(1).tolist()
    shared = subject.columns("denoising", options)
    which = {"target": target, "control": "none", "projector": "none"}
    rows: Rows = {"cells": [], "samples": [], "metrics": []}
    for label in result.groups:
        if label == "all":  # embraces the label embedding
            continue
        estimate, group = result[label], {"group": parameter_groups.in_table(label)}
        here = shared | which | group | bin_columns(place, low, high)
        measured = {"draws": estimate.draws, "loss": result.loss, "engine": result.engine}
        rows["cells"].append(here | estimate_columns(estimate, options.batch_ref) | NOTHING | measured)
        rows["samples"] += sample_rows(here, subject.images(options), t_N, result.losses.tolist(), estimate)
        rows["metrics"] += variance_rows(here, estimate)
    return rows


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "cells", "samples" and (several draws) "metrics"."""
    rows: Rows = {"cells": [], "samples": [], "metrics": []}
    for index in tqdm(range(options.bins), desc="denoising", unit="bin", mininterval=0.5, leave=False):
        for kind, values in resume.rows(f"bin{index}", partial(_bin, subject, options, index)).items():
            rows[kind] += values
    return rows, {}
