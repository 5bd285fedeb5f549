"""Checksums of the rows of a cache: 64 bits (XXH3) a cell, in a column of their own, compared whenever a row is read.

    check[row] = [xxh3(bytes of the row's cell) for the other columns, in their order]        uint64; of strings, of their JSON list
    header.rows_sha[split] = SHA-256 of the column `check`, from the first row to the last

The first tells a damaged row when it is read, at a tenth of what SHA-256 of it would cost; the second, compared when its first row is read, tells
shards that were exchanged, left out, listed twice or taken from another cache. N: rows, K: columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from gsnr.train.data import arrow

COLUMN = "check"


def checks_of(columns: Mapping[str, NDArray], names: list[str]) -> NDArray[np.uint64]:
    """(N,K) of the named columns, each (N, ...), or (N,) lists of strings."""
    first = columns[names[0]]
    found = np.empty((len(first), len(names)), np.uint64)
    for k, name in enumerate(names):
        for row, cell in enumerate(_cells(columns[name])):
            found[row, k] = xxhash.xxh3_64_intdigest(cell)
    return found


def _cells(column: NDArray) -> Iterator[bytes | memoryview]:
    """The bytes of each row's."""
    if column.dtype == object:
        yield from (json.dumps(list(cell)).encode() for cell in column)
    else:
        yield from (cell.data for cell in np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8))


def _column(table: pa.Table) -> arrow.Column:
    """The checksums, each row (K,)."""
    return arrow.Column(table.column(COLUMN), (table.num_columns - 1,))


def _sha(column: arrow.Column) -> str:
    digest = hashlib.sha256()
    for part in column.parts:
        digest.update(part)
    return digest.hexdigest()


def rows_sha(table: pa.Table) -> str:
    """SHA-256 of the checksums of a split's rows, however it is cut into shards."""
    return _sha(_column(table))


class RowChecks:
    """Of one split. expected: its rows_sha; None for a split from before rows had checksums. where: the split, for errors.

    Raises ValueError where a split that should have checksums has none."""

    def __init__(self, table: pa.Table, expected: str | None, where: str) -> None:
        self.table, self.expected, self.where = table, expected, where
        self.names = [name for name in table.column_names if name != COLUMN]
        self.column: arrow.Column | None = None
        if expected is not None and COLUMN not in table.column_names:
            raise ValueError(f"{where}: lacks the column {COLUMN!r}; prepare the data again")

    def compare(self, rows: Mapping[str, NDArray], row_N: NDArray[np.int64]) -> None:
        """rows: columns as they are stored, at these places. Raises ValueError for the first cell that is not as it was written, and, the first
        time, where the rows are not those that were written, or not in their order."""
        if self.expected is None:
            return
        if self.column is None:
            self.column = self._those_expected()
        names = list(rows)
        found, wanted = checks_of(rows, names), self.column.take(row_N)[:, [self.names.index(name) for name in names]]
        for row, k in np.argwhere(found != wanted)[:1]:
            raise ValueError(f"{self.where}: row {row_N[row]}, column {names[k]!r}: damaged; `gsnr verify` names the file")

    def _those_expected(self) -> arrow.Column:
        column = _column(self.table)
        if _sha(column) != self.expected:
            raise ValueError(
                f"{self.where}: its rows are not those that were written (shards exchanged, left out, of another cache, or damaged); `gsnr verify` "
                "names the file"
            )
        return column
