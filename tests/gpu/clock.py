"""Time and memory of work on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Until the device has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def median_s(work: Callable[[], object], turns: int = 7) -> float:
    """Median seconds of one call, after two that are not counted."""
    spent = []
    for turn in range(turns + 2):
        wait()
        start = time.perf_counter()
        work()
        wait()
        if turn >= 2:
            spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def forget_peak() -> None:
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Greatest memory that PyTorch held since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
