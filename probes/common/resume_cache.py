"""Pieces of a long measurement, kept as they are finished: a kill or Ctrl-C loses the piece that was being measured and no other.

FOLDER/settings.json       what the measurement depends on
FOLDER/KEY.json            the rows of a piece
FOLDER/KEY.safetensors     the tensors of a piece

Each is sealed with its SHA-256 (`gsnr.checksums`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gsnr import checksums, files, table

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS = "settings.json"
Rows = dict[str, list[dict[str, Any]]]  # kind of table -> rows


def _unsealed(path: Path, what_then: str) -> dict[str, Any]:
    """What a sealed JSON file holds. Raises ValueError, ending with `what_then`, for one that is damaged."""
    try:
        return checksums.read_sealed(path)
    except ValueError as error:
        raise ValueError(f"{error}; {what_then}") from error


def _check(rows: Rows, path: Path) -> None:
    """Raises ValueError for rows that no table takes."""
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: holds no rows; delete it")
    for kind, of_kind in rows.items():
        table.check_rows(kind, of_kind, str(path))


class ResumeCache:
    """The pieces of one measurement, by key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder, and keeps other processes out of it meanwhile. Raises ValueError where one is at work there: each would take the
        other's pieces for its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._lock(handle)
            yield
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{self.folder}: another process is measuring there; wait for it, or name another folder with --out") from error
        except OSError:  # a file system without locks
            pass

    def clear(self) -> None:
        """Drops the pieces; the folder stays, and stays held."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def finished(self) -> int:
        """Pieces that are there."""
        return sum(path.is_file() and not path.name.startswith(".") and path.name != SETTINGS for path in self.folder.rglob("*"))

    def begin(self, settings: dict[str, Any], resume: bool, defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Takes up what lies there, or starts anew. defaults: of settings that it may be too old to have.

        Raises ValueError for pieces of other settings, or of the same without `resume`."""
        path = self.folder / SETTINGS
        if self.finished and path.is_file():
            was = {**defaults, **_unsealed(path, f"delete {self.folder}")}
            changed = [key for key, value in json.loads(json.dumps(settings)).items() if was.get(key) != value]
            if changed:
                raise ValueError(
                    f"{self.folder}: an interrupted measurement with other settings ({changed[0]} was {was.get(changed[0])!r}, "
                    f"now {settings[changed[0]]!r}); --overwrite drops it"
                )
            if not resume:
                raise ValueError(
                    f"{self.folder}: an interrupted measurement, {self.finished} pieces of it; --resume continues it, --overwrite drops it"
                )
            return
        if self.folder.is_dir():
            self.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(checksums.seal(settings)))

    def rows(self, key: str, measure: Callable[[], Rows]) -> Rows:
        """A piece's rows, measured if they are not there. Raises ValueError for rows that no table takes, as soon as they are measured, and naming
        a piece that is damaged."""
        path = self.folder / f"{key}.json"
        if path.is_file():
            rows: Rows = _unsealed(path, "delete it")
            _check(rows, path)
            return rows
        rows = measure()
        _check(rows, path)
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, checksums.sealed_text(rows))
        return rows

    def _of_tensors(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def tensors(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A piece's tensors on the CPU, made if they are not there. Raises ValueError naming a piece that is damaged."""
        if not self._of_tensors(key).is_file():
            self.keep(key, make())
        found = self.kept(key)
        assert found is not None
        return found

    def keep(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Writes a piece's tensors, in place of what was there."""
        from safetensors.torch import save

        made = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.replacing(self._of_tensors(key)) as aside:
            aside.write_bytes(checksums.seal_tensors(save(made)))

    def drop(self, key: str) -> None:
        """Forgets a piece's tensors, if they are there."""
        self._of_tensors(key).unlink(missing_ok=True)

    def kept(self, key: str) -> dict[str, Tensor] | None:
        """A piece's tensors on the CPU, None where there are none. Raises ValueError naming a piece that is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._of_tensors(key)
        if not path.is_file():
            return None
        try:
            return load(checksums.read_tensors(path))
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it") from error
        except ValueError as error:
            raise ValueError(f"{error}; delete it") from error

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
