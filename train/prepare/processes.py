"""The processes of one `gsnr prepare`, started by torchrun: they agree on whether to begin, count together, and wait for one another.

Without torchrun there is one, and everything here is immediate. They talk through torchrun's key-value store alone: there is nothing to add up
on the way, and a process group's threads may deadlock when it is taken down.
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
FAREWELL_SEC = 10.0  # how long the first process stays for the others to have read what it said


@dataclass(frozen=True, kw_only=True)
class Processes:
    """rank of world; device: this one's; store: what they share."""

    rank: int
    world: int
    device: str
    store: dist.Store

    def agree(self, work: Callable[[], T]) -> T:
        """work() on all. Where it raised ValueError or OSError on any, the first process raises ValueError with its words; others exit with 2."""
        if self.world == 1:
            return work()
        words = ""
        try:
            done = work()
        except (ValueError, OSError) as error:
            words = str(error)
        self.store.set(f"words of {self.rank}", words)
        failed = [said for said in (self.store.get(f"words of {rank}").decode() for rank in range(self.world)) if said]
        if not failed:
            return done
        if self.rank == 0:
            raise ValueError(failed[0])
        raise SystemExit(2)

    def count(self, images: int) -> int:
        """Adds to the images that all of them have encoded; how many that makes."""
        return self.store.add("images", images)

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """The first process waits for all others to have come here; they go on. meanwhile: called now and then, and at the end."""
        arrived = self.store.add("arrived", 1)
        while self.rank == 0 and arrived < self.world:
            meanwhile()
            time.sleep(0.05)
            arrived = self.store.add("arrived", 0)
        meanwhile()


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those of WORLD_SIZE (torchrun, accelerate launch). Raises ValueError where touch with the others is lost."""
    rank, world, local = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    if world == 1:
        yield Processes(rank=rank, world=world, device=device, store=dist.HashStore())
        return
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=PATIENCE))
        try:
            yield Processes(rank=rank, world=world, device=device, store=store)
        finally:
            left, until = store.add("left", 1), time.monotonic() + FAREWELL_SEC
            while rank == 0 and left < world and time.monotonic() < until:  # the store may be this process's own
                time.sleep(0.05)
                left = store.add("left", 0)
    except dist.DistError as error:
        raise ValueError("touch with the other processes was lost; what is finished stays: run the same command again") from error
