"""How much memory this process may have. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory_of_process() -> int:
    """Bytes: the machine's memory, or what its control groups (a container, a job of Slurm) are limited to. 8 GiB where neither is known."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    with suppress(OSError, ValueError):  # no Linux, or lines of another form
        known += _limits(GROUPS.read_text(), MOUNTED)
    return min(known, default=8 << 30)


def _limits(groups: str, mounted: Path) -> Iterator[int]:
    """Of every group of a process, and those around them. groups: lines "number:controllers:path", as in /proc/self/cgroup."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, name = mounted / "memory", "memory.limit_in_bytes"
        elif not controllers:
            root, name = mounted, "memory.max"
        else:
            continue
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            with suppress(OSError, ValueError):  # no such group under this mount, as in a container
                limit = (root / group / name).read_text().strip()
                if limit.isdigit() and int(limit):  # else "max"
                    yield int(limit)
