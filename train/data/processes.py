"""The processes of one `train.prepare`, started by torchrun: they agree on whether to begin and wait for one another at the end.

Without torchrun there is one, and everything here is immediate. They share nothing else but the folder that they write to.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=30)  # how long a process may wait for one that still works


@dataclass(frozen=True, kw_only=True)
class Processes:
    """rank of world; device: this one's."""

    rank: int
    world: int
    device: str

    def agree(self, work: Callable[[], T]) -> T:
        """work() on all. Where it raised ValueError or OSError on any, the first process raises ValueError with its words; others exit with 2."""
        if self.world == 1:
            return work()
        words: str | None = None
        try:
            done = work()
        except (ValueError, OSError) as error:
            words = str(error)
        everyone: list[str | None] = [None] * self.world
        dist.all_gather_object(everyone, words)
        failed = [w for w in everyone if w is not None]
        if not failed:
            return done
        if self.rank == 0:
            raise ValueError(failed[0])
        raise SystemExit(2)

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Until all are here. Raises ValueError where one has died."""
        if self.world == 1:
            return
        try:
            everyone = dist.barrier(async_op=True)
            while not everyone.is_completed():
                meanwhile()
                time.sleep(0.2)
            everyone.wait()
        except RuntimeError as error:
            raise ValueError("another process has died; what is finished stays: run the same command again") from error


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those of WORLD_SIZE (torchrun, accelerate launch)."""
    rank, world, local = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if world > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(rank=rank, world=world, device=f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    finally:
        if world > 1:
            dist.destroy_process_group()
