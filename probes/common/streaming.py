"""Batches that are made ahead by other processes while a GPU works, and in place on a CPU, whose cores are busy anyway."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from gsnr.train.data.batches import loader

WORKERS = 8  # processes at most


class Steps(Protocol):
    """`self[step]` is what one step works on: batches by name, on the CPU; a pure function of step."""

    def __getitem__(self, step: int) -> dict[str, dict[str, torch.Tensor]]: ...


def streamed(steps: Steps, first: int, last: int, device: str) -> Iterator[dict[str, dict[str, torch.Tensor]]]:
    """What steps first .. last - 1 work on, in order, on the device; copied there from pinned memory, without waiting, where it is a GPU."""
    if torch.device(device).type == "cpu":
        yield from (steps[step] for step in range(first, last))
        return
    workers = max(0, min(WORKERS, (os.cpu_count() or 1) - 1, last - first))
    made: Any = loader(steps, first, last, workers)  # type: ignore[arg-type]
    for batches in made:
        yield {name: {key: x.to(device, non_blocking=True) for key, x in batch.items()} for name, batch in batches.items()}
