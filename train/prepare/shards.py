"""A cache written shard by shard, so that many processes can write it and a kill loses no more than the shards it met.

    ASIDE/cache/SPLIT/data-00003-of-00512.arrow     rows of consecutive images of a split; written aside and renamed
    ASIDE/notes/SPLIT-00003-of-00512.safetensors    written last: this shard is finished; its checksum, its sums, its images, what was skipped
    ASIDE/options.json, lock                        what all of it depends on; held by the process that leads

How the images are cut into shards depends on their number alone. When every note is there, one process adds the header, the statistics and
what `datasets.load_from_disk` asks for, and renames ASIDE/cache. Shapes: N rows, latent (C,h,w), group (L,C,g,g).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gsnr import checksums, files, locks
from gsnr.train.config import TEXT
from gsnr.train.data import arrow, quantise, row_checks, statistics
from gsnr.train.data.cache import CAPTION, COUNT, HEADER, IMAGE, NULL_TEXT, ONLINE, SPLITS, STATISTICS, Header, Rows, open_cache
from gsnr.train.prepare import contents
from gsnr.train.prepare.contents import Content

MOST_SHARDS, LEAST_IMAGES = 512, 128  # of a split, of a shard: few enough files to open, small enough to lose
RECORD = "prepare.json"  # in a finished cache: the options it depends on, and the images that were left out
ROWS_TOGETHER = 64  # in an Arrow record batch, at least: fewer and larger ones open faster


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `number` of `of` of a split. images: their numbers in the source, ascending."""

    split: str
    number: int
    of: int
    images: NDArray[np.int64]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.of:05d}"


def images_per_shard(images: int) -> int:
    return max(LEAST_IMAGES, -(-images // MOST_SHARDS))


def cut(members: dict[str, NDArray[np.int64]], size: int) -> list[Shard]:
    """split -> image numbers, cut into shards of `size` images, split by split."""
    made = []
    for split, images in members.items():
        parts = np.split(images, range(size, len(images), size))
        made += [Shard(split=split, number=i, of=len(parts), images=part) for i, part in enumerate(parts)]
    return made


@dataclass(frozen=True)
class Seen:
    """What was met while a shard was made. skipped: one line an image that was left out; contents: of every picture, those included."""

    skipped: list[str] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is known of a finished shard. images: written; entry: of the manifest; sums: see `gsnr.train.data.statistics`."""

    images: int
    seen: Seen
    entry: checksums.Entry
    sums: statistics.Sums


class Workplace:
    """The folder aside. Everything in it may be left behind by a kill, and is taken up again."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        self.cache = aside / "cache"
        self.record = aside / "options.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands out, until this process ends at the latest, however it ends. Raises ValueError where one is at work."""
        self.aside.mkdir(parents=True, exist_ok=True)
        with locks.Lock(self.aside / "lock"):
            yield

    def begun(self) -> bool:
        """Whether any shard is finished."""
        return any(not note.name.startswith(".") for note in (self.aside / "notes").glob("*"))

    def make_ready(self, options: dict[str, object]) -> None:
        """Folders to write to; what a killed process was writing is removed, and all of it where no shard was finished."""
        if not self.begun():
            shutil.rmtree(self.cache, ignore_errors=True)
        for half in list(self.aside.rglob(".*")):
            shutil.rmtree(half) if half.is_dir() else half.unlink(missing_ok=True)
        for folder in (self.aside / "notes", *(self.cache / split for split in SPLITS)):
            folder.mkdir(parents=True, exist_ok=True)
        files.write_text(self.record, json.dumps({"options": options}, indent=2) + "\n")

    def data(self, shard: Shard) -> Path:
        return self.cache / shard.split / f"data-{shard.number:05d}-of-{shard.of:05d}.arrow"

    def note(self, shard: Shard) -> Path:
        return self.aside / "notes" / f"{shard.name}.safetensors"

    def finished(self, shard: Shard) -> bool:
        return self.note(shard).is_file() and self.data(shard).is_file()

    def write(self, shard: Shard, header: Header, batches: Iterable[tuple[Rows, statistics.Sums]], seen: Seen) -> None:
        """Writes a shard from its batches of rows and their sums. seen: known when the last batch is.

        Raises OSError on a full disk.
        """
        sums: statistics.Sums = {}
        images = 0

        def rows() -> Iterator[Rows]:
            nonlocal images, sums
            for chunk, its_sums in batches:
                images += len(chunk["image_id"]) // header.views
                sums = statistics.add(sums, its_sums)
                yield chunk

        write_rows(self.data(shard), header, rows())
        entry = checksums.entry_of(self.data(shard))
        notes = {"images": str(images), "seen": json.dumps(asdict(seen)), "entry": json.dumps(entry)}
        with files.replacing(self.note(shard)) as path:
            path.write_bytes(checksums.seal_tensors(save(sums, notes)))

    def read_note(self, shard: Shard) -> Note:
        """Raises ValueError naming a note that is damaged."""
        path = self.note(shard)
        try:
            checksums.read_tensors(path)
            with safe_open(path, "numpy") as stored:
                meta = stored.metadata()
                sums = {group: stored.get_tensor(group) for group in stored.keys()}  # noqa: SIM118 (a file, not a mapping)
            seen = files.parse_json(meta["seen"])
            met = Seen(seen["skipped"], [Content(*one) for one in seen["contents"]])
            return Note(images=int(meta["images"]), seen=met, entry=files.parse_json(meta["entry"]), sums=sums)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it and run the same command again") from error


def _schema(header: Header) -> pa.Schema:
    size = int(np.prod(header.latent_shape))
    fields = {
        "image_id": pa.int64(),
        "label": pa.int64(),
        "view": pa.int8(),
        row_checks.COLUMN: pa.null(),
        "mean": pa.list_(pa.float32(), size),
        "std": pa.list_(pa.float32(), size),
    }
    for group, shape in header.stored.items():
        fields[group] = pa.list_(pa.int8() if header.dtype == "int8" else pa.float16(), int(np.prod(shape)))
        if header.dtype == "int8":
            fields[f"{group}{quantise.SUFFIX}"] = pa.list_(pa.float16(), int(np.prod(shape[:2])))
    if header.dtype == ONLINE:
        fields[IMAGE] = pa.list_(pa.uint8(), 3 * header.resolution**2)
    if header.text_shape:
        fields |= {COUNT: pa.int64(), CAPTION: pa.list_(pa.string())}
        fields[TEXT] = pa.list_(pa.float16(), header.captions * int(np.prod(header.text_shape)))
    fields[row_checks.COLUMN] = pa.list_(pa.uint64(), len(fields) - 1)
    return pa.schema(fields)


def _record(chunks: list[Rows], schema: pa.Schema) -> pa.RecordBatch:
    names = [name for name in schema.names if name != row_checks.COLUMN]
    types = {name: getattr(schema.field(name).type, "value_type", schema.field(name).type) for name in schema.names}  # of strings: object
    values = {name: np.concatenate([chunk[name] for chunk in chunks]).astype(types[name].to_pandas_dtype(), copy=False) for name in names}
    values[row_checks.COLUMN] = row_checks.checks_of(values, names)

    def column(name: str) -> pa.Array:
        if values[name].dtype == object:
            return pa.array([list(cell) for cell in values[name]], type=schema.field(name).type)
        flat = pa.array(values[name].reshape(-1), type=types[name])
        return pa.FixedSizeListArray.from_arrays(flat, schema.field(name).type.list_size) if values[name].ndim > 1 else flat

    return pa.RecordBatch.from_arrays([column(name) for name in schema.names], schema=schema)


def write_rows(path: Path, header: Header, rows: Iterable[Rows]) -> None:
    """An Arrow stream at `path`, which appears when it is whole. Raises OSError on a full disk."""
    schema = _schema(header)
    with files.replacing(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        waiting: list[Rows] = []
        for chunk in rows:
            waiting.append(chunk)
            if sum(len(w["image_id"]) for w in waiting) >= ROWS_TOGETHER:
                writer.write_batch(_record(waiting, schema))
                waiting = []
        if waiting:
            writer.write_batch(_record(waiting, schema))


def finish(
    place: Workplace,
    shards: list[Shard],
    header: Header,
    record: dict[str, object],
    measure: str = "",
    null_text: NDArray[np.float32] | None = None,
) -> tuple[Header, list[str]]:
    """Makes a cache of finished shards, in place.cache; (its header, the lines of all images that were left out).

    record: for CACHE/prepare.json, beside those lines. measure: how the latents' scaling is taken from the train split, of statistics.MEASURES,
    or "" where the header has it. null_text: of a cache with captions, see `cache.Split`. Raises ValueError naming a shard that is damaged, or where
    a split has no images left.
    """
    notes = {shard.name: place.read_note(shard) for shard in shards}
    sums: statistics.Sums = {}
    tables: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
    for shard in shards:
        try:
            tables[shard.split].append(arrow.read_shard(place.data(shard)))
        except ValueError as error:
            raise ValueError(f"{error}; delete it and run the same command again") from error
        if shard.split == "train":
            sums = statistics.add(sums, notes[shard.name].sums)
    sizes = {split: sum(notes[s.name].images for s in shards if s.split == split) for split in SPLITS}
    if not all(sizes.values()):
        raise ValueError(f"{header.data}: no readable images for split {next(split for split, n in sizes.items() if not n)!r}")
    header = replace(header, sizes=sizes, rows_sha={split: row_checks.rows_sha(pa.concat_tables(parts)) for split, parts in tables.items()})
    if measure:
        scaling = statistics.scaling_of(sums[statistics.LATENT], measure)
        header = replace(header, scale=scaling.factor, channel_scale=scaling.channel_scale, channel_bias=scaling.channel_bias)
    skipped = [line for note in notes.values() for line in note.seen.skipped]
    if null_text is not None:
        with files.replacing(place.cache / NULL_TEXT) as path:
            path.write_bytes(save({"null": np.ascontiguousarray(null_text, np.float32)}))
    _write_small(place, shards, header, {**record, "skipped": skipped}, statistics.mean_and_std(sums))
    contents.write(place.cache, [content for note in notes.values() for content in note.seen.contents])
    known = {str(place.data(shard).relative_to(place.cache)): notes[shard.name].entry for shard in shards}
    files.write_text(place.cache / checksums.MANIFEST, checksums.Manifest.of(place.cache, known).text())
    open_cache(place.cache, header.columns)
    return header, skipped


def _write_small(place: Workplace, shards: list[Shard], header: Header, record: dict[str, object], means: dict[str, NDArray[np.float32]]) -> None:
    """The files of a cache beside its shards."""
    import datasets

    features = datasets.Features.from_arrow_schema(_schema(header))
    for split in SPLITS:
        datasets.DatasetInfo(features=features).write_to_directory(str(place.cache / split))
        names = [{"filename": place.data(shard).name} for shard in shards if shard.split == split]
        files.write_text(place.cache / split / arrow.STATE, json.dumps(_state(names, f"{header.options_sha[:16]}{split}"), indent=2) + "\n")
    files.write_text(place.cache / "dataset_dict.json", json.dumps({"splits": list(SPLITS)}) + "\n")
    with files.replacing(place.cache / STATISTICS) as path:
        path.write_bytes(save(means))
    files.write_text(place.cache / RECORD, json.dumps(record, indent=2) + "\n")
    files.write_text(place.cache / HEADER, json.dumps(header.written(), indent=2) + "\n")


def _state(names: list[dict[str, str]], fingerprint: str) -> dict[str, object]:
    """What `datasets` keeps in a folder's state.json."""
    nothing = dict.fromkeys(("_format_columns", "_format_type", "_split"))
    return {"_data_files": names, "_fingerprint": fingerprint, "_format_kwargs": {}, "_output_all_columns": False, **nothing}


def publish(place: Workplace, out: Path) -> None:
    """Renames the finished cache into place and removes the folder aside.

    A cache that another process put there meanwhile is left as it is. Raises ValueError where `out` is something else.
    """
    try:
        os.rename(place.cache, out)
        files.sync(out.parent)
    except OSError as error:
        if not (out / HEADER).is_file():
            raise ValueError(f"cache {out}: cannot be put there ({error.strerror})") from error
    shutil.rmtree(place.aside, ignore_errors=True)
