"""Time and memory of work on the device."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from gsnr.benchmarks import clock

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def median_s(work: Callable[[], object], turns: int = 7) -> float:
    """Median seconds of one call, after two that are not counted."""
    return statistics.median([clock.seconds(work) for _ in range(turns + 2)][2:])


def forget_peak() -> None:
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Greatest memory that PyTorch held since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
