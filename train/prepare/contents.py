"""The pictures that a cache was made from, by size and SHA-256: others under the same names are other data.

    CACHE/sources.parquet     number (the picture's in the source), bytes, sha256; 0 and "" for one that was not there

Noted while the pictures are read to be encoded, and compared, in one pass over them, when the same command meets a cache that is there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gsnr import checksums, files
from gsnr.train.data.cache import SOURCES
from gsnr.train.prepare.sources import Source


class Content(NamedTuple):
    """One picture."""

    number: int
    bytes: int
    sha256: str


def content_of(source: Source, number: int) -> Content:
    """As it is now."""
    try:
        data = source.content(number)
    except OSError:
        return Content(number, 0, "")
    return Content(number, len(data), hashlib.sha256(data).hexdigest())


def write(cache: Path, contents: list[Content]) -> None:
    """In the order of their numbers. The demo's pictures, which are no files, have none."""
    if not contents:
        return
    columns = zip(*sorted(contents), strict=True)
    table = pa.table({name: list(values) for name, values in zip(Content._fields, columns, strict=True)})
    with files.replacing(cache / SOURCES) as path:
        pq.write_table(table, path, compression="zstd")


def read(cache: Path) -> list[Content]:
    """[] for a cache from before they were noted. Raises ValueError for a damaged file."""
    path = cache / SOURCES
    if not path.is_file():
        checksums.say_unchecked(cache)
        return []
    checksums.Manifest.read(cache).check(SOURCES)
    try:
        return [Content(**row) for row in pq.read_table(path).to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())})") from error


def compare(source: Source, before: Iterable[Content], what: str) -> None:
    """Raises ValueError, beginning with `what`, for the first picture that is another one now."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for was, now in pool.map(lambda was: (was, content_of(source, was.number)), before):
            if was != now:
                raise ValueError(
                    f"{what} from other pictures: {source.name(was.number)} had {was.bytes} bytes with SHA-256 {was.sha256[:12] or 'unknown'}, now "
                    f"{now.bytes} with {now.sha256[:12] or 'unknown'}; put it back, or name a new folder with --out"
                )
