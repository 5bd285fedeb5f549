"""The floor of a target: what its controls reach, and whether the target stands above it.

A control is a target that says nothing of the image: that of another image, or a constant. What it reaches of G-SNR is not always 0: a projector
that is not linear in t or in the place of a token leaves a mean gradient that all images share. A true target has that too; it shows something of
its own only where it lies above the controls, on the same images, times and noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

import gsnr
from gsnr.intervals import student_interval
from gsnr.probes.common.candidates import Candidate
from gsnr.probes.common.options import CONSTANT, NONE, SHUFFLED

FLOOR = (SHUFFLED, CONSTANT)  # controls within a class say what class it is, and are no floor
UNKNOWN: dict[str, Any] = {"floor": float("nan"), "floor_low": float("nan"), "floor_high": float("nan"), "above_floor": False}
Estimates = Mapping[str, Mapping[str, gsnr.Estimate]]  # name of a candidate -> group of parameters -> its estimate


def controls_of(candidate: Candidate, made: list[Candidate]) -> list[Candidate]:
    """The controls that a target is held against: its own, or those of the first target that has some, with the same kind of projector."""
    if candidate.control != NONE:
        return []
    alike = [c for c in made if c.projector == candidate.projector and c.control in FLOOR]
    return [c for c in alike if c.target == candidate.target] or [c for c in alike if c.target == alike[0].target]


def columns(candidate: Candidate, made: list[Candidate], estimates: Estimates, group: str) -> dict[str, Any]:
    """floor, floor_low, floor_high: gsnr of the highest control, with its interval; NaN where there is none. above_floor: the target is
    detected, and the paired 95 % interval of its difference from every control lies above 0."""
    mine = estimates[candidate.name][group]
    controls = [estimates[c.name][group] for c in controls_of(candidate, made)]
    controls = [control for control in controls if np.isfinite(control.gsnr)]
    if not controls:
        return UNKNOWN
    highest = max(controls, key=lambda control: control.gsnr)
    low, high = highest.ci()
    above = not mine.below_detection and all(gsnr.difference_ci(mine, control)[0] > 0 for control in controls)
    return {"floor": highest.gsnr, "floor_low": low, "floor_high": high, "above_floor": above}


def underfit(loss_N: Tensor, constant_N: Tensor) -> bool:
    """Whether a projector reaches less than a constant does, by more than the noise between images (95 %). loss, constant: (N,), one an image."""
    worse_N = (loss_N - constant_N).double().cpu().numpy()
    se = float(worse_N.std(ddof=1) / np.sqrt(len(worse_N)))
    return student_interval(float(worse_N.mean()), se, len(worse_N), 0.95)[0] > 0
