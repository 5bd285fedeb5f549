"""Where pictures and their labels come from: class folders, a folder with a labels file, or a Hugging Face data set.

    class folders     DATA/CLASS/**.png: classes are the sub-folders in sorted order
    labels file       DATA/dataset.json {"labels": [["00000/img00000000.png", 5], ...]} (REPA, EDM2), DATA/labels.csv with columns file,label,
                      or another file of either kind; it says which files there are, in its own order sorted by name
    Hugging Face      a folder of `save_to_disk`, or whatever `datasets.load_dataset` reads by path or hub id; columns image and label

N: images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from gsnr.train.data.labels import Labels, check_labels, read_labels

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TABLES = (".arrow", ".parquet", ".tar")  # files that `datasets.load_dataset` is asked to read
LABEL_FILES = ("dataset.json", "labels.csv")
SPLIT_NAMES = {"test", "train", "val", "valid", "validation"}


class Source(Protocol):
    """Pictures by number, 0 to N-1, which are the cache's image_id."""

    @property
    def labels(self) -> Labels:
        """(N,)."""
        ...

    @property
    def classes(self) -> int | None:
        """How many, where the data say so."""
        ...

    def name(self, number: int) -> str:
        """The picture, for a person."""
        ...

    def image(self, number: int) -> Image.Image:
        """The picture. Raises whatever its decoder raises."""
        ...

    def content(self, number: int) -> bytes:
        """What it is decoded from. Raises OSError where it is not there."""
        ...

    @property
    def sha(self) -> str:
        """SHA-256 of which pictures there are and their labels, not of their pixels: of those see `gsnr.train.prepare.contents`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Files:
    """Picture files under a folder. names: relative to it, sorted."""

    root: Path
    names: list[str]
    labels: Labels
    classes: int | None = None

    def name(self, number: int) -> str:
        return str(self.root / self.names[number])

    def image(self, number: int) -> Image.Image:
        with Image.open(self.root / self.names[number]) as image:
            image.load()
            return image

    def content(self, number: int) -> bytes:
        return (self.root / self.names[number]).read_bytes()

    @property
    def sha(self) -> str:
        return hashlib.sha256("\n".join(self.names).encode() + self.labels.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A Hugging Face data set."""

    data: str
    images: Any  # datasets.Dataset with the column `image`
    stored: Any  # the same, not decoded
    fingerprint: str
    labels: Labels
    classes: int | None = None

    def name(self, number: int) -> str:
        return f"{self.data}, image {number}"

    def image(self, number: int) -> Image.Image:
        return self.images[number]["image"]

    def content(self, number: int) -> bytes:
        cell = self.stored[number]["image"]
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    @property
    def sha(self) -> str:
        """Of the labels and of the library's fingerprint of the data."""
        return hashlib.sha256(self.fingerprint.encode() + self.labels.tobytes()).hexdigest()


def _class_folders(folder: Path) -> Files | None:
    classes = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    pictures = ((f, label) for label, d in enumerate(classes) for f in sorted(d.rglob("*")) if f.suffix.lower() in SUFFIXES)
    found = [(str(f.relative_to(folder)), label) for f, label in pictures if not f.name.startswith(".")]
    if not found:
        return None
    if {d.name.lower() for d in classes} <= SPLIT_NAMES:
        raise ValueError(f"--data {folder}: its sub-folders are splits, not classes; name one of them, such as {classes[0]}")
    return Files(root=folder, names=[name for name, _ in found], labels=np.array([label for _, label in found], np.int64), classes=len(classes))


def _labelled(folder: Path, path: Path) -> Files:
    labels = read_labels(path)
    names = sorted(labels)
    return Files(root=folder, names=names, labels=np.array([labels[name] for name in names], dtype=np.int64))


def _table(data: str, opened: Any, split: str) -> Table:
    """Of a Dataset or DatasetDict. Raises ValueError for a split or a column that it does not have."""
    import datasets

    if isinstance(opened, dict):
        if split not in opened:
            raise ValueError(f"--split {split}: {data} has {', '.join(opened)}")
        opened = opened[split]
    for column in ("image", "label"):
        if column not in opened.column_names:
            raise ValueError(f"--data {data}: has no column {column!r}, but {', '.join(opened.column_names)}")
    feature = opened.features["label"]
    labels = np.asarray(opened.select_columns(["label"]).with_format("numpy")["label"][:])
    if labels.dtype.kind not in "iu":
        raise ValueError(f"--data {data}: its column label holds {feature}, not class numbers")
    classes = feature.num_classes if isinstance(feature, datasets.ClassLabel) else None
    if not isinstance(opened.features["image"], datasets.Image):
        raise ValueError(f"--data {data}: its column image holds {opened.features['image']}, not images")
    images = opened.select_columns(["image"])
    stored = images.cast_column("image", datasets.Image(decode=False))
    found = {"fingerprint": opened._fingerprint, "labels": labels.astype(np.int64), "classes": classes}
    return Table(data=data, images=images, stored=stored, **found)


def _load(data: str, split: str, why: str) -> Table:
    """What `datasets.load_dataset` reads. Raises ValueError: `why` the name is nothing else, and what the library says."""
    import datasets

    try:
        opened = datasets.load_dataset(data)
    except Exception as error:  # the library raises a dozen kinds for what is not there, not reachable or not readable
        raise ValueError(f"--data {data}: {why}, nor a data set that `datasets` can load ({' '.join(str(error).split())})") from error
    return _table(data, opened, split)


def _open(data: str, labels: Path | None, split: str) -> Source:
    if not data.strip():
        raise ValueError("--data is empty; name a folder or a Hugging Face data set")
    folder = Path(data)
    if not folder.is_dir():
        if folder.is_absolute() or data.startswith("."):
            raise ValueError(f"--data {data}: no such folder")
        return _load(data, split, "no such folder")
    if labels is not None:
        return _labelled(folder, labels)
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        import datasets

        try:
            opened = datasets.load_from_disk(data)
        except Exception as error:  # a damaged folder surfaces as one of many Arrow, JSON and OS errors
            raise ValueError(f"--data {data}: damaged or incomplete ({' '.join(str(error).split())})") from error
        return _table(data, opened, split)
    for name in LABEL_FILES:
        if (folder / name).is_file():
            return _labelled(folder, folder / name)
    found = _class_folders(folder)
    if found is not None:
        return found
    why = f"no images in sub-folders (one sub-folder a class: {', '.join(SUFFIXES)}), no {' or '.join(LABEL_FILES)}"
    if any(f.suffix in TABLES for f in folder.rglob("*")):
        return _load(data, split, why)
    raise ValueError(f"--data {data}: {why}")


def require_present(source: Files) -> None:
    """Raises ValueError for pictures that are listed and not there: before hours of work, not in the midst of them."""
    there: dict[Path, set[str]] = {}
    lacking = []
    for name in source.names:
        folder = (source.root / name).parent
        if folder not in there:
            there[folder] = {f.name for f in folder.iterdir()} if folder.is_dir() else set()
        if Path(name).name not in there[folder]:
            lacking.append(name)
    if lacking:
        raise ValueError(f"--data {source.root}: {len(lacking)} of {len(source.names)} listed pictures do not exist, the first {lacking[0]}")


def open_source(
    data: str, labels: Path | None = None, split: str | None = None, num_classes: int | None = None, all_there: bool = False
) -> tuple[Source, int]:
    """(source, number of classes). split: of a Hugging Face data set, default train. num_classes: default what the data say, or the highest label
    and one more. all_there: refuse a labels file that lists pictures which do not exist.

    Raises ValueError for data of none of the kinds above, and for a label that is no class, naming the image.
    """
    source = _open(data, labels, split or "train")
    if isinstance(source, Files):
        if split is not None:
            raise ValueError(f"--split {split}: of a Hugging Face data set; --data {data} is a folder of pictures, whose splits are folders")
        if all_there:
            require_present(source)
    classes = num_classes or source.classes or int(source.labels.max(initial=0)) + 1
    check_labels(source.labels, classes, source.name)
    return source, classes
