"""The time that work takes on the device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call, from and to a device that has nothing to do."""
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
