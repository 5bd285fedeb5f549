"""The cache: latents as moments, labels, and VAE features on the token grid, as a Hugging Face `datasets` folder that is memory-mapped.

    CACHE/gsnr_cache.json       the Header: which VAE and teacher (hashes), preprocessing, groups, shapes, dtype; schema version 1
    CACHE/statistics.safetensors  GROUP_mean, GROUP_std: (L,C) float32 over images and tokens of the train split; so latent_mean, latent_std
                                (1,C) where `gsnr prepare` measured them
    CACHE/text.safetensors      of a cache with captions: null, the states of the empty caption, (L,C) float32
    CACHE/dataset_dict.json     `datasets.load_from_disk` reads the folder; one sub-folder a split, any number of shards
    CACHE/sources.parquet       size and SHA-256 of every picture (`gsnr.train.prepare.contents`)
    CACHE/manifest.json         SHA-256 of every file; the small ones are compared when the cache is opened, shards by `gsnr verify`
    columns                     image_id, label, view (1 = mirrored), check, mean, std (C*h*w float32), one column a group (L*C*g*g float16,
                                or int8 beside a column GROUP_scale, L*C float16: see `gsnr.train.data.quantise`); of dtype "online" the
                                cropped picture, H*W*3 uint8, in place of VAE features: see `gsnr.train.priors.online`; with captions
                                n_captions, caption (as many strings) and text, the states of K captions, K*L*C float16

What a step reads is compared with `check`, the checksums of its row (`gsnr.train.data.row_checks`), and all of `check` with the header, so that
nobody has to read terabytes before training starts.

The views of an image are rows one after another. An image with fewer captions than K repeats their states. Written by
`gsnr.train.prepare.shards`. Shapes: N images, latent (C,h,w), group (L,C,g,g), text (L,C) of L positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gsnr import checksums, files
from gsnr.train.config import CLASS_TOKEN, TEXT
from gsnr.train.data import arrow, quantise, row_checks
from gsnr.train.data.latents import Scaling
from gsnr.train.priors.layers import GROUPS

SCHEMA_VERSION = 1
HEADER = "gsnr_cache.json"
STATISTICS = "statistics.safetensors"
SOURCES = "sources.parquet"  # large, and read by `gsnr prepare` alone
SPLITS = ("train", "heldout")
TEACHER = "teacher"  # the feature group of an image teacher's patch tokens
OF_TEACHER = (TEACHER, CLASS_TOKEN)
CAPTION, COUNT, NULL_TEXT = "caption", "n_captions", "text.safetensors"  # columns beside TEXT, and a file
OF_TEXT = ("text_shape", "captions", "truncated_captions", "text_encoder", "text_sha")  # fields of a header
ONLINE, IMAGE = "online", "image"  # the dtype of VAE features that are not stored, and the column that they are computed from
Rows = dict[str, NDArray]  # column -> (N, ...) array


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a cache holds and which VAE made it. groups: name -> (L,C,g,g); layers: name -> "number:name under `encoder.`". Group "teacher"
    is (1,C,g,g), the patch tokens of an image teacher, whose name and hash are `teacher` and `teacher_sha` ("" where there is none), and
    "teacher_cls" its class token, (1,C,1,1).

    text_shape: (L,C) of a caption's states, () where there are no captions; captions: most of an image; truncated_captions: how many were too long
    for the text encoder, whose name and hash are text_encoder and text_sha.

    sizes: images a split; views: rows an image (2: the second is mirrored). channel_scale, channel_bias: see `gsnr.train.data.latents`.
    preprocessing_sha: of what a fixed picture is cropped to; options_sha: of the options that the rows depend on ("" where not known);
    rows_sha: split -> SHA-256 of its rows' checksums, which says which data they are ({} where not known; of latents that others prepared:
    `latent_folders`). Raises ValueError for a scale that cannot be."""

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
    views: int = 1
    channel_scale: tuple[float, ...] = ()
    channel_bias: tuple[float, ...] = ()
    preprocessing_sha: str = ""
    options_sha: str = ""
    rows_sha: dict[str, str] = field(default_factory=dict)
    text_shape: tuple[int, int] | tuple[()] = ()
    captions: int = 0
    truncated_captions: int = 0
    text_encoder: str = ""
    text_sha: str = ""

    def __post_init__(self) -> None:
        if not np.isfinite([self.scale, *self.channel_scale, *self.channel_bias]).all() or 0 in (self.scale, *self.channel_scale):
            raise ValueError(f"its scale is {self.scale}, by channel {self.channel_scale}, {self.channel_bias}")

    @property
    def scaling(self) -> Scaling:
        """Between the VAE's latents and the model's."""
        return Scaling(factor=self.scale, channel_scale=self.channel_scale, channel_bias=self.channel_bias)

    @property
    def stored(self) -> dict[str, tuple[int, int, int, int]]:
        """Those of its groups that lie in rows; of dtype "online" the teacher's alone."""
        return {group: shape for group, shape in self.groups.items() if self.dtype != ONLINE or group in OF_TEACHER}

    @property
    def columns(self) -> tuple[str, ...]:
        """What `open_cache` may be asked for: groups, and TEXT where there are captions."""
        return (*self.groups, TEXT) if self.text_shape else tuple(self.groups)

    @property
    def maps(self) -> dict[str, tuple[int, int, int, int]]:
        """Those of its groups that lie on the token grid."""
        return {group: shape for group, shape in self.groups.items() if group != CLASS_TOKEN}

    def bytes_an_image(self) -> dict[str, int]:
        """What an image takes in its rows, all views together: "latent" (mean and std), and each group, or the picture that groups are made from."""
        cell = 1 if self.dtype == "int8" else 2
        scales = 2 if self.dtype == "int8" else 0
        sizes = {"latent": 2 * 4 * int(np.prod(self.latent_shape))}
        sizes |= {group: cell * int(np.prod(shape)) + scales * int(np.prod(shape[:2])) for group, shape in self.stored.items()}
        sizes |= {TEXT: 2 * self.captions * int(np.prod(self.text_shape))} if self.text_shape else {}
        sizes |= {IMAGE: 3 * self.resolution**2} if self.dtype == ONLINE else {}
        return {name: self.views * size for name, size in sizes.items()}

    def written(self) -> dict[str, Any]:
        """For JSON. One without captions is as it was before there were any."""
        return {name: value for name, value in asdict(self).items() if self.text_shape or name not in OF_TEXT}


def header_from(fields: dict[str, Any]) -> Header:
    """A Header from its JSON form, where tuples have become lists."""
    shapes: dict[str, Any] = {key: {k: tuple(v) for k, v in fields[key].items()} for key in ("groups", "layers")}
    channels = {key: tuple(fields.get(key, ())) for key in ("channel_scale", "channel_bias", "text_shape")}
    return Header(**(fields | shapes | channels | {"latent_shape": tuple(fields["latent_shape"])}))


def read_header(folder: Path) -> Header:
    """Raises ValueError, naming the file, for a folder that is no cache or of another schema version."""
    path = folder / HEADER
    if not path.is_file():
        raise ValueError(f"{folder}: not a gsnr cache (no {HEADER}); make one with `gsnr prepare`")
    try:
        fields = files.read_json(path)
        if not isinstance(fields, dict):
            raise TypeError("not a mapping")
        found = fields.get("schema_version")
        header = header_from(fields) if found == SCHEMA_VERSION else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if header is None:
        raise ValueError(f"{path}: schema version {found}, this version reads {SCHEMA_VERSION}; prepare the data again")
    if not all(isinstance(header.sizes.get(split), int) for split in SPLITS) or not all(len(shape) == 4 for shape in header.groups.values()):
        raise ValueError(f"{path}: damaged (its sizes or the shapes of its groups)")
    if len(header.text_shape) not in (0, 2) or bool(header.text_shape) != (header.captions > 0):
        raise ValueError(f"{path}: damaged (the shape of its text)")
    if header.dtype not in (*quantise.DTYPES, ONLINE):
        raise ValueError(f"{path}: features of dtype {header.dtype!r}; this version reads {', '.join((*quantise.DTYPES, ONLINE))}")
    if header.rows_sha and not (folder / checksums.MANIFEST).exists():
        raise ValueError(f"{folder / checksums.MANIFEST}: missing; prepare the data again")
    return header


class Split(Protocol):
    """One split of a data set: of a cache, or of latents that somebody else prepared (`repa_cache`, `irepa_cache`)."""

    header: Header

    @property
    def size(self) -> int:
        """Images."""
        ...

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        """column -> (N, ...) array, of one view of each image (or of a view each)."""
        ...

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        """GROUP_mean, GROUP_std: (L,C) of the train split."""
        ...

    def texts(self, index_N: NDArray[np.int64], u_N: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N,L,C): the states of one caption of each image, of n that of number floor(n u). Raises ValueError where there are none, as below."""
        ...

    def null_text(self) -> NDArray[np.float32]:
        """(L,C): the states of the empty caption."""
        ...

    def captions(self, index_N: NDArray[np.int64]) -> list[tuple[str, ...]]:
        """The captions of each image."""
        ...


class Over:
    """A split over another, whose it is in all that `Split` says but `header` and `take`, which are its own."""

    stored: Split
    header: Header
    size: int

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        return self.stored.statistics()

    def texts(self, index_N: NDArray[np.int64], u_N: NDArray[np.float64]) -> NDArray[np.float32]:
        return self.stored.texts(index_N, u_N)

    def null_text(self) -> NDArray[np.float32]:
        return self.stored.null_text()

    def captions(self, index_N: NDArray[np.int64]) -> list[tuple[str, ...]]:
        return self.stored.captions(index_N)


class CachedSplit:
    """One split of a cache, memory-mapped. Raises ValueError naming a shard that is missing or damaged."""

    def __init__(self, folder: Path, split: str, header: Header) -> None:
        try:
            table = arrow.read_folder(folder / split)
        except ValueError as error:
            raise ValueError(f"{error}; put the file back, or delete the folder {folder} and prepare the data again") from error
        if table.num_rows != header.sizes[split] * header.views:
            raise ValueError(f"{folder / split}: holds {table.num_rows} rows, not {header.sizes[split] * header.views}; prepare the data again")
        self.opened_as = (folder, split, header)
        self.header = header
        self.size = header.sizes[split]
        shapes: dict[str, tuple[int, ...]] = {"mean": header.latent_shape, "std": header.latent_shape}
        for group, shape in header.stored.items():
            shapes |= {group: shape, f"{group}{quantise.SUFFIX}": shape[:2]}
        if header.dtype == ONLINE:
            shapes[IMAGE] = (header.resolution, header.resolution, 3)
        if header.text_shape:
            shapes |= {CAPTION: (), COUNT: (), TEXT: (header.captions, *header.text_shape)}
        lacking = [name for name in ("label", *(name for name in shapes if not name.endswith(quantise.SUFFIX))) if name not in table.column_names]
        if lacking:
            raise ValueError(f"{folder / split}: lacks the column {lacking[0]!r}; prepare the data again")
        try:
            stored = [name for name in table.column_names if name != row_checks.COLUMN]
            self.columns: dict[str, arrow.Column | arrow.Strings] = {
                name: arrow.Strings(table.column(name)) if name == CAPTION else arrow.Column(table.column(name), shapes.get(name, ()))
                for name in stored
            }
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{folder / split}: does not hold what {folder / HEADER} says ({error}); prepare the data again") from error
        self.checks = row_checks.RowChecks(table, header.rows_sha.get(split), f"{folder / split}")
        labels = self.columns["label"].take(np.arange(table.num_rows, dtype=np.int64))
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= header.num_classes:
            raise ValueError(f"{folder / split}: a label is none of 0 to {header.num_classes - 1}; prepare the data again")

    def __reduce__(self) -> tuple[type[CachedSplit], tuple[Path, str, Header]]:
        """Pickled (for a data worker that is spawned, not forked) as where it is, not as what it holds."""
        return CachedSplit, self.opened_as

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        """See `Split`; features are float16, whatever they are stored as."""
        assert np.all(np.asarray(view) < self.header.views)
        row_N = index_N * self.header.views + view
        rows = {name: self.columns[name].take(row_N) for name in columns}
        scales = [f"{name}{quantise.SUFFIX}" for name in columns if rows[name].dtype == np.int8 and name in self.header.groups]
        rows |= {name: self.columns[name].take(row_N) for name in scales}
        self.checks.compare(rows, row_N)
        for name in columns:
            if rows[name].dtype == np.int8 and name in self.header.groups:
                rows[name] = quantise.dequantise_rows(rows[name], rows.pop(f"{name}{quantise.SUFFIX}"))
        return rows

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        """See `Split`. Raises ValueError where the file is missing or damaged."""
        path = self.opened_as[0] / STATISTICS
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: missing or damaged; delete the cache and prepare it again") from error
        lacking = [f"{group}_{which}" for group in self.header.groups for which in ("mean", "std") if f"{group}_{which}" not in found]
        if lacking:
            raise ValueError(f"{path}: lacks {lacking[0]}; delete the cache and prepare it again")
        return found

    def _require_text(self) -> None:
        if not self.header.text_shape:
            raise ValueError(f"{self.opened_as[0]}: holds no captions; prepare it again with {flags_for((TEXT,))}")

    def texts(self, index_N: NDArray[np.int64], u_N: NDArray[np.float64]) -> NDArray[np.float32]:
        """See `Split`."""
        self._require_text()
        rows = self.take(index_N, (COUNT, TEXT))
        return rows[TEXT][np.arange(len(index_N)), (u_N * rows[COUNT]).astype(np.int64)].astype(np.float32)

    def null_text(self) -> NDArray[np.float32]:
        """See `Split`. Raises ValueError where the file is missing or damaged."""
        self._require_text()
        path = self.opened_as[0] / NULL_TEXT
        try:
            found = load_file(path)["null"]
            if found.shape != self.header.text_shape:
                raise ValueError(f"shape {found.shape}, not {self.header.text_shape}")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: missing or damaged ({error}); delete the cache and prepare it again") from error
        return found

    def captions(self, index_N: NDArray[np.int64]) -> list[tuple[str, ...]]:
        """See `Split`."""
        self._require_text()
        return list(self.take(index_N, (CAPTION,))[CAPTION])


def open_cache(folder: Path, groups: tuple[str, ...]) -> tuple[Header, dict[str, Split]]:
    """(header, split -> Split). Raises ValueError where the folder is no cache, is damaged, or lacks a group that is needed."""
    header = read_header(folder)
    checksums.Manifest.read(folder).check_all(leave_out=(".arrow", SOURCES))
    if TEXT in groups and not header.text_shape:
        raise ValueError(f"{folder}: holds no captions; prepare it again with {flags_for(groups)}")
    missing = [g for g in groups if g not in header.groups and g != TEXT]
    if missing:
        have = ", ".join(header.groups) or "none"
        raise ValueError(f"{folder}: holds no features of {missing[0]} (it has {have}); prepare it again with {flags_for(groups)}")
    return header, {split: CachedSplit(folder, split, header) for split in SPLITS}


def flags_for(groups: tuple[str, ...]) -> str:
    """The flags of `gsnr prepare` that make features of these groups. Raises ValueError for one that it does not make."""
    features = ",".join(g for g in groups if g not in (*OF_TEACHER, TEXT))
    if others := [g for g in groups if g not in (*OF_TEACHER, TEXT, *GROUPS)]:
        raise ValueError(f"features of {others[0]}: `gsnr prepare` does not make them; its own are {', '.join((*GROUPS, *OF_TEACHER))}")
    said = [f"--features {features}"] if features else []
    said += ["--teacher facebook/dinov2-base"] if set(groups) & set(OF_TEACHER) else []
    said += ["--captions FILE --text-encoder openai/clip-vit-large-patch14"] if TEXT in groups else []
    return " ".join([*said, *(["--class-token"] if CLASS_TOKEN in groups else [])])
