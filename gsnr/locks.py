"""A lock file that says who holds it, and that is watched: deleting it does not let another process in unseen. Imports nothing heavy."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from gsnr import files

HELD = (errno.EACCES, errno.EAGAIN)  # a file that another process has locked
PATIENCE_SEC = 1.0  # another process may have a lock file that was deleted for as long as it takes to be refused elsewhere


def _same(path: Path, handle: TextIO) -> bool:
    """Whether the path is still the file that was opened."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(handle.fileno()))


def _holder(handle: TextIO) -> str:
    """Whoever wrote into a lock file, for a person; "" where it does not say."""
    handle.seek(0)
    try:
        who = files.parse_json(handle.read(1000))
        return f" (process {who['pid']} on {who['host']}, since {who['since']})"
    except (ValueError, KeyError, TypeError):
        return ""


def take(path: Path) -> TextIO:
    """Locks a file, made if need be, against other processes: until the handle is closed, or this process ends, however it ends.

    These are POSIX locks: children do not inherit them, and a process that opens and closes the file again loses its own. Raises ValueError,
    naming the folder and the holder, where another process has it.
    """
    while True:
        handle = path.open("a+")
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = _holder(handle)
            handle.close()
            why = f"another process is at work there{who}" if error.errno in HELD else f"{path.name!r} in it cannot be locked ({error.strerror})"
            raise ValueError(f"{path.parent}: {why}") from error
        if _same(path, handle):
            return handle
        handle.close()  # deleted between opening and locking


@contextmanager
def turn(path: Path, what: str) -> Iterator[None]:
    """Locks a file, made if need be, waiting for whoever has it, and removes it: of several processes that would make the same thing one does, and
    the others find it made. what: what is waited for, for the note that says so. Raises OSError where the file system has no locks."""
    told = False
    while True:
        with path.open("a") as handle:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in HELD:
                    raise
                if not told:
                    print(f"note: another process makes {what}; waiting for it", file=sys.stderr)
                told = True
                fcntl.lockf(handle, fcntl.LOCK_EX)
            if _same(path, handle):  # else whoever had it has removed it
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


class Lock:
    """A lock file, held: {"host", "pid", "since"} stand in it. Raises ValueError where another process holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = self._taken()

    def _taken(self) -> TextIO:
        handle = take(self.path)
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with files.naming(self.path):
            handle.truncate(0)
            handle.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n")
            handle.flush()
        return handle

    def watch(self) -> None:
        """Puts the file back where it was deleted or replaced. Raises ValueError where another process holds the one that is there now."""
        if _same(self.path, self.handle):
            return
        before, deadline = self.handle, time.monotonic() + PATIENCE_SEC
        while self.handle is before:
            try:
                self.handle = self._taken()
            except ValueError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PATIENCE_SEC / 20)
        before.close()
        print(f"note: {self.path}: was deleted or replaced while it was held; put back", file=sys.stderr)

    def close(self) -> None:
        self.handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
