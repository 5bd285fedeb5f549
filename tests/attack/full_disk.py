"""Every command that writes, on a disk that is full after so many bytes: one line that names the path, and what was there before.

The disk is full for a file that grows beyond a limit (RLIMIT_FSIZE: "File too large", where a full disk says "No space left on device"; both are
errors of the same calls). Sizes are drawn from 1 byte to the largest file that the command writes; what it prints counts where it writes no
other. An attack gets through where a command ends in something else than exit code 0 or 2, what it says is several lines or names no path, a
file of before is changed or gone, or a half-written one is left.
"""

from __future__ import annotations

import random
import resource
import time
from pathlib import Path
from typing import Any

from gsnr.train.runs import checkpoint
from tests.attack import _commands
from tests.attack._commands import COMMANDS, Attacked, contents

TIMES = 50  # of each command
STDOUT = "standard output"


def _wrong(attacked: Attacked, work: Path, before: dict[str, Any], code: int | None, said: str) -> str | None:
    """What got through; None for nothing."""
    if code not in (0, 2):
        return f"exit code {code}: {said[-300:]}"
    if code and len(said.strip().splitlines()) > 1:
        return f"several lines: {said[:300]}"
    if code and (STDOUT if attacked.prints else str(work)) not in said:
        return f"names no path: {said[:300]}"
    after = contents(work)
    new = [name for name in after if name not in before and after[name] != _commands.FOLDER and name not in (_commands.PRINTED, _commands.TIMED)]
    if left := [name for name in new if _commands.leftover(name) or (code and not name.startswith(attacked.grows))]:
        return f"left {left[0]}"
    changed = [name for name, content in before.items() if after.get(name) != content]
    if not code or not changed:
        return None
    if attacked.grows and all(name.startswith(attacked.grows) for name in changed):
        changed = [name for name in changed if not _commands.grown(name, before[name], after)]
        checkpoint.load(work / "run")
    return f"changed {changed[0]}" if changed else None


def once(attacked: Attacked, before: Path, work: Path, size: int) -> tuple[str | None, bool]:
    """What got through of one attack (None for nothing), and whether the disk was full for it."""
    _commands.fresh(before, work)
    limit = (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    command = _commands.start(attacked, work, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    code = command.end()
    return _wrong(attacked, work, contents(before), code, _commands.error_of(command)), code != 0


def largest(before: Path, work: Path) -> int:
    """Bytes of the largest file that is not of before (copies keep their times); 1 MiB where none is left."""
    old = {path.stat().st_mtime_ns for path in before.rglob("*")}
    new = [path for path in work.rglob("*") if path.is_file() and path.stat().st_mtime_ns not in old]
    return max((path.stat().st_size for path in new), default=1 << 20)


def attack(n: int, seed: int, folder: Path) -> list[str]:
    """n sizes of each command; n / 5 of a grid that has yet to train, which starts processes."""
    rng, through = random.Random(seed), []
    before, work = _commands.prepared(folder, list(COMMANDS)), folder / "work"
    for name, attacked in (COMMANDS | {"grid, new": _commands.NEW_GRID}).items():
        times = n if name in COMMANDS else -(-n // 5)
        start, stopped = time.monotonic(), 0
        _commands.fresh(before, work)
        _commands.done(attacked, work)
        most = largest(before, work)
        for _ in range(times):
            size = int(most ** rng.uniform(0, 1))
            wrong, full = once(attacked, before, work, size)
            stopped += full
            if wrong:
                through.append(f"{name}, {size} bytes: {wrong}")
                print(through[-1], flush=True)
        print(f"{name}: full {stopped} of {times} times, up to {most} bytes, {time.monotonic() - start:.0f} s", flush=True)
    return through
