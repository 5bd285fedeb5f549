"""Subjects of probes."""

from __future__ import annotations

from pathlib import Path

from gsnr.probes.common.subject import Subject, load


def subject_of(run: Path) -> Subject:
    """The EMA weights of a run, with the data it was trained on."""
    return load(run, data=None, vae_name=None, model=None, weights="ema")
