"""Commands in forked processes, each killed once on a fresh copy of what was there before.

Half of them die just before a random one of the calls that change the disk (open, rename, delete, ...), half at a random moment after the first of
these. Then every file of before and every new one is as it was, as the undisturbed command leaves it, or on the way there (a log with fewer
lines); other files lie in hidden places alone. The command is called again: all files are those of the undisturbed one, bit for bit but for the
clock's fields, and nothing is left of the kill but what the next command clears that writes there (which is told).
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsnr import files
from tests.attack import _commands
from tests.attack._commands import COMMANDS, Attacked, contents

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watched:
    """Counts the calls of a forked process that change the disk below a folder, and kills it before the one numbered `fatal` (0: none)."""

    def __init__(self, folder: Path, fatal: int = 0) -> None:
        self.folder, self.fatal = str(folder), fatal
        self.shared = mmap.mmap(-1, 16)

    @property
    def calls(self) -> int:
        count: int = struct.unpack("q", self.shared[:8])[0]
        return count

    @property
    def first(self) -> float:
        """When the first of them was, by time.monotonic(); 0 for never."""
        moment: float = struct.unpack("d", self.shared[8:])[0]
        return moment

    def begin(self) -> None:
        """In the process itself, for as long as it lives."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if (writes or event in CHANGES) and self.folder in str(args[0]):
            calls = self.calls + 1
            self.shared[:] = struct.pack("qd", calls, self.first or time.monotonic())
            if calls == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves, by how many calls that change the disk, and how long these take (or all of it, where there are none)."""

    after: dict[str, Any]
    calls: int
    seconds: float

    @classmethod
    def of(cls, attacked: Attacked, before: Path, work: Path) -> Undisturbed:
        _commands.fresh(before, work)
        watched = Watched(work)
        command = _commands.start(attacked, work, watched.begin)
        begun = time.monotonic()
        code = command.end()
        assert code == 0, f"gsnr {attacked.words}: exit code {code}: {_commands.error_of(command)[-500:]}"
        return cls(after=contents(work), calls=watched.calls, seconds=time.monotonic() - (watched.first or begun))


def _killed(attacked: Attacked, work: Path, whole: Undisturbed, fatal: int, seconds: float) -> str | None:
    """Where it was killed; None where it was faster."""
    watched = Watched(work, fatal)
    command = _commands.start(attacked, work, watched.begin)
    if not watched.fatal:
        begun = time.monotonic()
        while whole.calls and not watched.calls and time.monotonic() < begun + 60:
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(command.pid, signal.SIGKILL)  # it is there until it was waited for
    code = command.end()
    assert code in (0, -signal.SIGKILL), f"exit code {code}: {_commands.error_of(command)[-500:]}"
    return None if code == 0 else f"before call {watched.fatal}" if watched.fatal else f"after call {watched.calls}"


def _underway(name: str, now: Any, before: Any, whole: Any, after: dict[str, Any]) -> bool:
    """Whether a file is as it was, as it shall be, or on the way there."""
    if now in (before, whole) or (now is not None and name.endswith(".jsonl") and whole is not None and now == whole[: len(now)]):
        return True
    return name.endswith("/LAST") and f"{Path(name).parent}/checkpoints/{now.decode().strip()}/state.json" in after


def once(attacked: Attacked, before: Path, work: Path, whole: Undisturbed, fatal: int, seconds: float = 0) -> tuple[str | None, str | None]:
    """(what is wrong after a kill; None for nothing, where it was killed; None where it ended before). fatal: the call before which it is
    killed; 0: `seconds` after the first of them."""
    _commands.fresh(before, work)
    where = _killed(attacked, work, whole, fatal, seconds)
    old, after = contents(before), contents(work)
    if attacked.prints:
        after.pop(attacked.printed, None)
    for name in {**old, **after}:
        if not _commands.hidden(name) and not _underway(name, after.get(name), old.get(name), whole.after.get(name), after):
            return f"{name}: neither as before nor as undisturbed", where
    shown = {name: content for name, content in after.items() if not _commands.hidden(name)}
    if not (attacked.once and shown == whole.after):
        try:
            _commands.done(attacked, work)
        except AssertionError as error:
            return f"called again: {error}", where
    for left in filter(files.left_behind, list(work.rglob("*"))):
        where = f"{where}, leaving {left.relative_to(work)}"
        with files.scratch(left.with_name("any")):  # as whatever is written there next
            pass
    final = contents(work)
    differ = [name for name in {**whole.after, **final} if final.get(name) != whole.after.get(name)]
    return (f"called again: {differ[0]} is not that of the undisturbed" if differ else None), where


def forks(names: list[str], kills: int, rng: random.Random, folder: Path) -> list[str]:
    """So many kills, spread over these commands."""
    before, work, lost = _commands.prepared(folder, names), folder / "work", []
    for number, name in enumerate(names):
        start, places = time.monotonic(), list[str]()
        whole = Undisturbed.of(COMMANDS[name], before, work)
        wanted = kills // len(names) + (number < kills % len(names))
        for attempt in range(4 * wanted):
            if len(places) == wanted:
                break
            fatal = rng.randint(1, whole.calls) if whole.calls and attempt % 2 == 0 else 0
            wrong, where = once(COMMANDS[name], before, work, whole, fatal, rng.uniform(0, whole.seconds))
            places += [where] if where else []
            if wrong:
                lost.append(f"{name}, killed {where}: {wrong}")
                print(lost[-1], flush=True)
        told = f"{name}: {len(places)} kills ({', '.join(places)}; of {whole.calls} calls in {whole.seconds:.1f} s)"
        print(f"{told}, {time.monotonic() - start:.0f} s", flush=True)
    return lost
