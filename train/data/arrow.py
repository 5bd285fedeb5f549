"""Rows of a Hugging Face `datasets` folder by index, memory-mapped: nothing is copied but the rows asked for.

A folder holds `state.json`, which lists its shards, and the shards, Arrow streams. N: rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsnr import files

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # without it a file that was cut between two batches would pass for a shorter one
STATE = "state.json"


def read_shard(path: Path) -> pa.Table:
    """One shard. Raises ValueError naming a file that is missing, damaged or cut short."""
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        if path.stat().st_size < len(END_OF_STREAM):
            raise ValueError("it is empty")
        with path.open("rb") as handle:
            handle.seek(-len(END_OF_STREAM), 2)
            if handle.read() != END_OF_STREAM:
                raise ValueError("it is cut short")
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: damaged or incomplete ({' '.join(str(error).split())})") from error


def shards(folder: Path) -> list[Path]:
    """The shards of a folder in order. Raises ValueError naming a folder that is none."""
    path = folder / STATE
    try:
        state = files.read_json(path)
        names = [entry["filename"] for entry in state["_data_files"]]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not names or state.get("_indices_data_files"):
        raise ValueError(f"{path}: lists no shards of its own; save the data set again with `save_to_disk`")
    if names != sorted(set(names)):
        raise ValueError(f"{path}: damaged (its shards are listed twice or out of order)")
    return [folder / name for name in names]


def read_folder(folder: Path) -> pa.Table:
    """All rows of a folder. Raises ValueError naming the shard or file at fault."""
    return pa.concat_tables([read_shard(path) for path in shards(folder)])


class Column:
    """One column; `take(index_N)` -> (N, *shape). A cell is a number (shape ()) or a list, nested or not, of as many as `shape` has."""

    def __init__(self, column: pa.ChunkedArray, shape: tuple[int, ...]) -> None:
        self.parts = []
        for chunk in column.chunks:
            values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
                values = values.flatten()
            self.parts.append(values.to_numpy(zero_copy_only=bool(shape)).reshape(len(chunk), *shape))
        self.starts = np.cumsum([0] + [len(part) for part in self.parts])

    def take(self, index_N: NDArray[np.int64]) -> NDArray:
        which = np.searchsorted(self.starts, index_N, side="right") - 1
        out = np.empty((len(index_N), *self.parts[0].shape[1:]), dtype=self.parts[0].dtype)
        for part in np.unique(which):
            here = which == part
            out[here] = self.parts[part][index_N[here] - self.starts[part]]
        return out


class Strings:
    """A column of lists of strings; `take(index_N)` -> (N,) objects, a tuple of strings each."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        if column.type != pa.list_(pa.string()):
            raise ValueError(f"a column of {column.type}, not of lists of strings")
        self.column = column

    def take(self, index_N: NDArray[np.int64]) -> NDArray:
        out = np.empty(len(index_N), dtype=object)
        out[:] = [tuple(cell) for cell in self.column.take(pa.array(index_N)).to_pylist()]
        return out
