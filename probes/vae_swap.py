"""Another VAE's features under a trained router: does what the router learnt carry over? (AHPA Table B.10)

For the checkpoint's VAE and for each cache of `--swap` (the same images, encoded by another VAE): the G-SNR of the router's target and of the
uniform mixture, projectors fitted alike to each, on the same latents, noise and times. The column `vae` says whose features they are. The
paper measures on a vanilla backbone: `--ckpt VANILLA --align-from AHPA_RUN`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gsnr.options import option
from gsnr.probes.common.aligned import measure_all
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject
from gsnr.probes.common.swap import swapped
from gsnr.probes.common.targets import check, own_target
from gsnr.train.opening import open_prepared

SUMMARY = "G-SNR of the router's target and of the uniform mixture with the features of other VAEs (--swap CACHE)"
KIND = "cells"
SUMS = True
SCALES = ("bins", "n_images", "draws", "fit_samples")


@dataclass(frozen=True, kw_only=True)
class Options(TargetOptions):
    targets: tuple[str, ...] = option(("own", "uniform_both"), "alignment targets: the router's, and what it is compared with")
    swap: tuple[str, ...] = option((), "caches of the same images by other VAEs")


def _subjects(subject: Subject, options: Options) -> list[Subject]:
    """Raises ValueError where a cache of --swap does not fit."""
    return [subject, *(swapped(subject, name, *open_prepared(Path(name), ())) for name in options.swap)]


def cannot(subject: Subject, options: Options) -> str | None:
    """Raises ValueError where a cache of --swap does not fit."""
    own = own_target(subject)
    if own is None or not own[1].router_weights(torch.zeros(1)):
        return f"{subject.checkpoint.folder}: has no router over t; name a run of alignment 'ahpa' with --align-from"
    if not options.swap:
        return "no other VAE's features are named; give caches of the same images with --swap"
    subjects = _subjects(subject, options)
    vaes = [other.header.vae for other in subjects]
    for name in vaes:
        if vaes.count(name) > 1:
            raise ValueError(f"--swap: {name!r} is the VAE of two of the caches, the checkpoint's among them, and tables tell them apart by that")
    for other in subjects:
        check(other, replace(options, projector=("fit",)))
    return None


def identity(subject: Subject, options: Options) -> str:
    """What the measurement depends on beside checkpoint, data and options: the other caches."""
    return repr([other.header for other in _subjects(subject, options)[1:]])


def plan(subject: Subject, options: Options) -> list[str]:
    names = ", ".join(other.header.vae for other in _subjects(subject, options))
    return [f"targets {', '.join(options.targets)} with the features of {names}: {options.bins} bins x {options.n_images} images each"]


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows as `alignment` writes them, once for each VAE."""
    rows: Rows = {}
    notes = {}
    alike = replace(options, projector=("fit",))  # features of another VAE have no projector of their own
    for i, other in enumerate(_subjects(subject, options)):
        its_sums = sums / f"vae{i}" if sums is not None else None
        found, notes[f"{i} {other.header.vae}"] = measure_all(other, alike, "vae_swap", ResumeCache(resume.folder / f"vae{i}"), its_sums)
        for kind, values in found.items():
            rows.setdefault(kind, []).extend(values)
    return rows, notes
