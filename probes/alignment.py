"""Alignment G-SNR over t, per target and parameter group, on identical held-out images, times and noise (AHPA Sec. 3, Fig. 2, Table 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsnr.probes.common.account import account
from gsnr.probes.common.aligned import heads_of, measure_all, size_of
from gsnr.probes.common.candidates import candidates
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject
from gsnr.probes.common.targets import check, chosen, left_out, own_target, unfit, unmeasured

SUMMARY = "G-SNR of the alignment gradient per bin of t, target and parameter group, its angle to denoising, and the controls"
KIND = "cells"
SUMS = True
SCALES = ("bins", "n_images", "draws", "fit_samples")
Options = TargetOptions


def cannot(subject: Subject, options: Options) -> str | None:
    """Raises ValueError for targets that there are not."""
    check(subject, options)
    if chosen(subject, options.targets):
        return None
    return f"{subject.checkpoint.folder}: aligned to nothing, and the data hold no VAE features to compare; name other data with --data"


def plan(subject: Subject, options: Options) -> list[str]:
    made = candidates(subject, options)
    gradients = len(made) * options.bins * options.n_images * options.draws
    parts = subject.checkpoint.alignment.parts
    takes = account(subject.checkpoint.model, subject.tap, heads_of(made), options.n_images * options.draws)
    first = [f"of the checkpoint's {len(parts)} alignments, the first, at block {subject.tap}"] if len(parts) > 1 else []
    own = own_target(subject)
    first += [f"left out: the checkpoint's own alignment {why}"] if own is not None and (why := unmeasured(own[1])) else []
    apart = [f"left out: {name} {why}" for name, why in left_out().items()] if options.targets == ("all",) else []
    apart += [f"left out: control {control} ({why})" for control, why in unfit(subject, options).items()]
    return [
        *first,
        f"targets: {', '.join(c.name for c in made)}",
        *apart,
        f"linear projectors solved from {options.fit_samples} train samples, others descend to a plateau (at most {options.fit_steps} steps)",
        f"{options.bins} bins x {options.n_images} held-out images x {len(made)} targets x {options.draws} draws = {gradients} per-sample "
        f"gradients of {size_of(subject, made[0]):,} parameters (tap: block {subject.tap}), and those of the denoising loss once for all targets",
        f"{2e-12 * options.bins * takes.macs:,.1f} TFLOP of matrix products, {takes.sums_bytes / 2**30:.1f} GiB of sums",
    ]


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    return measure_all(subject, options, "alignment", resume, sums)
