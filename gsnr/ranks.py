"""Several processes as one measurement: sums are added over ranks, per-sample numbers laid end to end, errors told to everyone.

Every function is the identity where torch.distributed is not initialised or has one rank. Collectives are reached by every rank or by none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

T = TypeVar("T")
A = TypeVar("A", bound=NDArray[Any])


class NotFinite(ValueError):
    """Gradients that are not finite; every rank knows it by this kind where one rank has them."""


def count(distributed: bool) -> int:
    """Ranks that measure together."""
    return dist.get_world_size() if distributed and dist.is_available() and dist.is_initialized() else 1


def together(work: Callable[[], T], distributed: bool) -> T:
    """work(), or an error on every rank if it failed on any: no rank is left waiting for one that gave up."""
    if count(distributed) == 1:
        return work()
    error: Exception | None = None
    try:
        done = work()
    except Exception as caught:
        error = caught
    failures: list[Any] = [None] * count(True)
    dist.all_gather_object(failures, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            kind = NotFinite if failure.startswith(f"{NotFinite.__name__}: ") else ValueError
            raise kind(f"rank {rank}: {failure}")
    return done


def add(tensors: Any, distributed: bool) -> None:
    """Sums tensors over ranks, in place."""
    if count(distributed) > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def join(arrays: dict[str, A], distributed: bool) -> dict[str, A]:
    """Concatenates each array over ranks, in their order; lengths may differ."""
    if count(distributed) == 1:
        return arrays
    parts: list[Any] = [None] * count(True)
    dist.all_gather_object(parts, arrays)
    return {key: np.concatenate([part[key] for part in parts]) for key in arrays}  # type: ignore[misc]
