"""A stranger's probe: the mean norm of tokens at the tap, over t."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gsnr.options import option
from gsnr.probes.common.fit import hidden_at_tap
from gsnr.probes.common.options import BinOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns
from gsnr.train.data.heldout import heldout_batches

SUMMARY = "mean norm of tokens at the tap, per bin of t"
KIND = "metrics"
SCALES = ("bins", "n_images")


@dataclass(frozen=True, kw_only=True)
class Options(BinOptions):
    power: float = option(1.0, "the norm's power", above=0)


def cannot(subject: Subject, options: Options) -> str | None:
    return None


def plan(subject: Subject, options: Options) -> list[str]:
    return [f"{options.bins} bins x {options.n_images} held-out images at block {subject.tap}"]


@torch.no_grad()
def _bin(subject: Subject, options: Options, index: int) -> Rows:
    low, high = options.edges(index)
    subject.checkpoint.model.to(subject.device)
    batches = heldout_batches(subject.splits["heldout"], options.n_images, options.seed, "heldout", low, high, (), first=options.first_image)
    norms = [hidden_at_tap(subject, {k: x.to(subject.device) for k, x in batch.items()}).norm(dim=-1) for _, batch in batches]
    norm_N = np.concatenate([x.pow(options.power).mean(1).double().cpu().numpy() for x in norms])
    error = 1.96 * norm_N.std(ddof=1) / np.sqrt(len(norm_N))
    where = {"target": "tokens", "control": "none", "projector": "none", "group": f"block {subject.tap}", "metric": "token_norm"}
    value = float(norm_N.mean())
    row = subject.columns("token_norm", options) | bin_columns(index, low, high) | where
    return {"metrics": [row | {"value": value, "low": value - float(error), "high": value + float(error)}]}


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    pieces = [resume.rows(f"bin{i}", partial(_bin, subject, options, i))["metrics"] for i in range(options.bins)]
    return {"metrics": [row for piece in pieces for row in piece]}, {}
