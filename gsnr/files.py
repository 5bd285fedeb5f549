"""Writing files so that a kill or a full disk leaves what was there before: aside, synced, renamed. Imports nothing heavy."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def sync(path: Path) -> None:
    """Makes a file's contents, or a folder's entries, outlive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what was written there takes the place of `path` if the block ends well, and vanishes if not."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def require_regular(path: Path) -> None:
    """Raises ValueError for what is no regular file: a device never ends, and a pipe waits."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name}: is no regular file")


def read_json(path: Path) -> Any:
    """A JSON file's contents. Raises ValueError for what is no regular file, no JSON, or nested too deeply, OSError where it cannot be read."""
    require_regular(path)
    try:
        return json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error


def write_text(path: Path, text: str) -> None:
    """Replaces a text file as a whole."""
    with replacing(path) as aside:
        aside.write_text(text)


def lock(path: Path) -> TextIO:
    """Locks a file, made if need be, against other processes: until the handle is closed, or this process ends, however it ends.

    Raises ValueError, naming the folder, where another process holds it.
    """
    handle = path.open("w")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ValueError(f"{path.parent}: another process is at work there, or {path.name!r} in it cannot be locked ({error.strerror})") from error
    return handle


def check_writable(folder: Path, flag: str) -> None:
    """Raises ValueError, naming the flag, where a folder cannot be created or written to; leaves everything as it was.

    Called before hours go into what would be written there.
    """
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {folder}: cannot be written to ({error.strerror})") from error
    finally:
        for made in missing:
            if made.is_dir():
                made.rmdir()
