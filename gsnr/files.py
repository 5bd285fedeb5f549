"""Writing files so that a kill or a full disk leaves what was there before: aside, synced, renamed. Imports nothing heavy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def write_text(path: Path, text: str) -> None:
    """Replaces a text file as a whole."""
    with replacing(path) as aside:
        aside.write_text(text)


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
