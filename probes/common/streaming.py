"""Batches that are made ahead by other processes while a GPU works, and in place on a CPU, whose cores are busy anyway."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from gsnr.train.data.batches import loader

WORKERS = 8  # processes at most
OWN = ""  # the name of a step's own batch, beside those of its controls


class Steps(Protocol):
    """`self[step]` is what one step works on: batches by name, on the CPU; a pure function of step."""

    def __getitem__(self, step: int) -> dict[str, dict[str, torch.Tensor]]: ...


def streamed(steps: Steps, first: int, last: int, device: str, workers: int | None = None) -> Iterator[dict[str, dict[str, torch.Tensor]]]:
    """What steps first .. last - 1 work on, in order, on the device; copied there from pinned memory, without waiting, where it is a GPU.
    workers: processes (default: none for a CPU)."""
    if workers is None:
        workers = 0 if torch.device(device).type == "cpu" else max(0, min(WORKERS, (os.cpu_count() or 1) - 1, last - first))
    if not workers:
        yield from ({name: _on(device, batch) for name, batch in steps[step].items()} for step in range(first, last))
        return
    made: Any = loader(steps, first, last, workers)  # type: ignore[arg-type]
    for batches in made:
        yield {name: _on(device, batch) for name, batch in batches.items()}


def _on(device: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: x.to(device, non_blocking=True) for key, x in batch.items()}
