"""Another VAE's features under a trained router: does what the router learnt carry over? (AHPA Table B.10)

For the checkpoint's VAE and for each cache of `--swap` (the same images, encoded by another VAE): the G-SNR of the router's target and of the
uniform mixture, projectors fitted alike to each, on the same latents, noise and times. The column `vae` says whose features they are. The
paper measures on a vanilla backbone: `--ckpt VANILLA --router AHPA_RUN`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gsnr.probes.common.aligned import measure_all
from gsnr.probes.common.fit import FIT, check, own_target
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Options, Subject
from gsnr.probes.common.swap import swapped

SUMMARY = "G-SNR of the router's target and of the uniform mixture with the features of other VAEs (--swap CACHE)"
KIND = "cells"
SCALES = ("bins", "n_images", "draws", "fit_steps")
TARGETS = ("own", "uniform_both")


def _options(options: Options) -> Options:
    return replace(options, targets=options.targets or TARGETS, projectors=(FIT,))


def _subjects(subject: Subject) -> list[Subject]:
    return [subject, *(swapped(subject, name, header, splits) for name, header, splits in subject.swaps)]


def cannot(subject: Subject, options: Options) -> str | None:
    """Raises ValueError where a cache of --swap does not fit."""
    own = own_target(subject)
    if own is None or not own[2].router_weights(torch.zeros(1)):
        return f"{subject.checkpoint.folder}: has no router over t; name a run of alignment 'ahpa' with --router"
    if not subject.swaps:
        return "no other VAE's features are named; give caches of the same images with --swap"
    subjects = _subjects(subject)
    vaes = [other.header.vae for other in subjects]
    for name in vaes:
        if vaes.count(name) > 1:
            raise ValueError(f"--swap: {name!r} is the VAE of two of the caches, the checkpoint's among them, and tables tell them apart by that")
    for other in subjects:
        check(other, _options(options))
    return None


def plan(subject: Subject, options: Options) -> list[str]:
    names = ", ".join(other.header.vae for other in _subjects(subject))
    return [f"targets {', '.join(_options(options).targets)} with the features of {names}: {options.bins} bins x {options.n_images} images each"]


def run(subject: Subject, options: Options, parts: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows as `alignment` writes them, once for each VAE."""
    rows: Rows = {}
    notes = {}
    for i, other in enumerate(_subjects(subject)):
        its_sums = sums / f"vae{i}" if sums is not None else None
        found, notes[f"{i} {other.header.vae}"] = measure_all(other, _options(options), "vae_swap", ResumeCache(parts.folder / f"vae{i}"), its_sums)
        for kind, values in found.items():
            rows.setdefault(kind, []).extend(values)
    return rows, notes
