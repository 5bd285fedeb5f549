"""The cache: latents as moments, labels, and pooled VAE features, as a Hugging Face `datasets` folder that is memory-mapped.

    CACHE/gsnr_cache.json       the Header: which VAE and teacher (hashes), preprocessing, groups, shapes, dtype; schema version 1
    CACHE/statistics.safetensors  GROUP_mean, GROUP_std: (L,C) float32 over images and tokens of the train split
    CACHE/dataset_dict.json     `datasets.load_from_disk` reads the folder; one sub-folder a split
    columns                     image_id, label, view (1 = mirrored), mean, std (C*h*w float32), one column a group (L*C*g*g float16)

Written aside and renamed. Shapes: N images, latent (C,h,w), group (L,C,g,g).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

SCHEMA_VERSION = 1
HEADER = "gsnr_cache.json"
STATISTICS = "statistics.safetensors"
SPLITS = ("train", "heldout")
Rows = dict[str, NDArray]  # column -> (N, ...) array


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a cache holds and which VAE made it. groups: name -> (L,C,g,g); layers: name -> "number:name under `encoder.`". Group "teacher"
    is (1,C,g,g), the patch tokens of an image teacher, whose name and hash are `teacher` and `teacher_sha` ("" where there is none)."""

    schema_version: int
    data: str
    vae: str
    vae_sha: str
    scale: float
    resolution: int
    num_classes: int
    latent_shape: tuple[int, int, int]
    resampling: str
    preprocessing: str
    dtype: str
    groups: dict[str, tuple[int, int, int, int]]
    layers: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    teacher: str = ""
    teacher_sha: str = ""


class _Statistics:
    """Mean and standard deviation per layer and channel, over images and tokens, of the rows that pass by; float64 sums."""

    def __init__(self, groups: dict[str, tuple[int, int, int, int]]) -> None:
        self.count = 0
        self.sums = {group: np.zeros((2, *shape[:2])) for group, shape in groups.items()}

    def watch(self, rows: Iterator[Rows]) -> Iterator[Rows]:
        for chunk in rows:
            self.count += len(chunk["image_id"])
            for group, sums in self.sums.items():
                f = chunk[group].astype(np.float64)
                sums += np.stack([f.sum(axis=(0, 3, 4)), np.square(f).sum(axis=(0, 3, 4))])
            yield chunk

    def tensors(self, groups: dict[str, tuple[int, int, int, int]]) -> dict[str, NDArray[np.float32]]:
        """GROUP_mean, GROUP_std. A deviation below what float16 resolves of its mean is 0: the channel does not vary."""
        found: dict[str, NDArray[np.float32]] = {}
        for group, (total, squares) in self.sums.items():
            n = self.count * groups[group][2] * groups[group][3]
            mean = total / n
            std = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
            found |= {f"{group}_mean": mean.astype(np.float32), f"{group}_std": np.where(std > 1e-4 * np.abs(mean), std, 0.0).astype(np.float32)}
        return found


def _fixed(array: NDArray) -> pa.FixedSizeListArray:
    flat = np.ascontiguousarray(array).reshape(len(array), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def write(out: Path, header: Header, splits: dict[str, Iterator[Rows]]) -> None:
    """Writes a cache from streams of rows; nothing appears under `out` until all of it is there.

    A cache that another process finished meanwhile is left as it is. Raises ValueError where `out` is something else.
    """
    import datasets

    aside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        streams = aside / "streams"
        streams.mkdir(parents=True)
        statistics = _Statistics(header.groups)
        for split, rows in splits.items():
            rows = statistics.watch(rows) if split == "train" else rows
            writer = None
            with pa.OSFile(str(streams / f"{split}.arrow"), "wb") as sink:
                for chunk in rows:
                    scalars = {k: pa.array(v) for k, v in chunk.items() if v.ndim == 1}
                    batch = pa.RecordBatch.from_pydict(scalars | {k: _fixed(v) for k, v in chunk.items() if v.ndim > 1})
                    writer = writer or pa.ipc.new_stream(sink, batch.schema)
                    writer.write_batch(batch)
                if writer is None:
                    raise ValueError(f"cache {out}: split {split!r} has no images")
                writer.close()
        opened = {split: datasets.Dataset.from_file(str(streams / f"{split}.arrow")) for split in splits}
        progress = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bar()
        datasets.DatasetDict(opened).save_to_disk(str(aside / "done"))
        if progress:
            datasets.enable_progress_bar()
        save_file(statistics.tensors(header.groups), aside / "done" / STATISTICS)
        (aside / "done" / HEADER).write_text(json.dumps(asdict(header), indent=2) + "\n")
        try:
            os.rename(aside / "done", out)
        except OSError as error:
            if not (out / HEADER).is_file():
                raise ValueError(f"cache {out}: cannot be put there ({error.strerror})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def header_from(fields: dict[str, Any]) -> Header:
    """A Header from its JSON form, where tuples have become lists."""
    shapes: dict[str, Any] = {key: {k: tuple(v) for k, v in fields[key].items()} for key in ("groups", "layers")}
    return Header(**(fields | shapes | {"latent_shape": tuple(fields["latent_shape"])}))


def read_header(folder: Path) -> Header:
    """Raises ValueError, naming the file, for a folder that is no cache or of another schema version."""
    path = folder / HEADER
    if not path.is_file():
        raise ValueError(f"{folder}: not a gsnr cache (no {HEADER}); make one with `python -m train.prepare`")
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise TypeError("not a mapping")
        found = fields.get("schema_version")
        if found != SCHEMA_VERSION:
            raise ValueError(f"{path}: schema version {found}, this version reads {SCHEMA_VERSION}; prepare the data again")
        return header_from(fields)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error


class _Column:
    """Rows of one Arrow column by index, without copying more than the rows asked for."""

    def __init__(self, column: pa.ChunkedArray, shape: tuple[int, ...]) -> None:
        self.parts = []
        for chunk in column.chunks:
            if isinstance(chunk, pa.ExtensionArray):
                chunk = chunk.storage
            values = chunk.flatten().to_numpy(zero_copy_only=True) if shape else chunk.to_numpy(zero_copy_only=False)
            self.parts.append(values.reshape(len(chunk), *shape))
        self.starts = np.cumsum([0] + [len(part) for part in self.parts])

    def take(self, index_N: NDArray[np.int64]) -> NDArray:
        which = np.searchsorted(self.starts, index_N, side="right") - 1
        out = np.empty((len(index_N), *self.parts[0].shape[1:]), dtype=self.parts[0].dtype)
        for part in np.unique(which):
            here = which == part
            out[here] = self.parts[part][index_N[here] - self.starts[part]]
        return out


class Split:
    """One split of a cache, memory-mapped. `take(index_N, columns)` -> column -> (N, ...) array."""

    def __init__(self, folder: Path, split: str, header: Header) -> None:
        import datasets

        try:
            table = datasets.load_from_disk(str(folder / split)).data.table
        except Exception as error:  # a damaged folder surfaces as one of many Arrow, JSON and OS errors
            raise ValueError(f"{folder / split}: damaged or incomplete; delete the folder {folder} and prepare it again") from error
        self.opened_as = (folder, split, header)
        self.header = header
        self.size = table.num_rows
        shapes = {"mean": header.latent_shape, "std": header.latent_shape} | header.groups
        self.columns = {name: _Column(table.column(name), tuple(shapes.get(name, ()))) for name in table.column_names}

    def __reduce__(self) -> tuple[type[Split], tuple[Path, str, Header]]:
        """Pickled (for a data worker that is spawned, not forked) as where it is, not as what it holds."""
        return Split, self.opened_as

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...]) -> Rows:
        return {name: self.columns[name].take(index_N) for name in columns}

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        """GROUP_mean, GROUP_std: (L,C) of the train split. Raises ValueError where the file is missing or damaged."""
        path = self.opened_as[0] / STATISTICS
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: missing or damaged; delete the cache and prepare it again") from error
        lacking = [f"{group}_{which}" for group in self.header.groups for which in ("mean", "std") if f"{group}_{which}" not in found]
        if lacking:
            raise ValueError(f"{path}: lacks {lacking[0]}; delete the cache and prepare it again")
        return found


def open_cache(folder: Path, groups: tuple[str, ...]) -> tuple[Header, dict[str, Split]]:
    """(header, split -> Split). Raises ValueError where the folder is no cache or lacks a group that is needed."""
    header = read_header(folder)
    missing = [g for g in groups if g not in header.groups]
    if missing:
        have = ", ".join(header.groups) or "none"
        again = f"--features {','.join(g for g in groups if g != 'teacher')}" if missing[0] != "teacher" else "--teacher facebook/dinov2-base"
        raise ValueError(f"{folder}: holds no features of {missing[0]} (it has {have}); prepare it again with {again}")
    return header, {split: Split(folder, split, header) for split in SPLITS}
