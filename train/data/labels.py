"""Labels of images: read from a labels file, and checked against the number of classes. N: images."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsnr import files

MOST_CLASSES = 10**7
Labels = NDArray[np.int64]  # (N,)


def read_labels(path: Path) -> dict[str, int]:
    """file name -> class, of a dataset.json or a CSV. Raises ValueError naming the file and the entry at fault."""
    try:
        files.require_regular(path)
        if path.suffix == ".json":
            pairs = files.read_json(path)["labels"]
            if pairs is None:
                raise ValueError("it holds no labels")
        else:
            with path.open(newline="", encoding="utf-8-sig") as handle:  # spreadsheets begin a CSV with a byte-order mark
                rows = csv.DictReader(handle)
                if not {"file", "label"} <= set(rows.fieldnames or ()):
                    raise ValueError(f"its first line must name the columns file and label, not {', '.join(rows.fieldnames or ())}")
                pairs = [(row["file"], row["label"]) for row in rows]
        labels: dict[str, int] = {}
        for name, label in pairs:
            if isinstance(label, float | list) or not str(label).lstrip("-").isdecimal() or abs(int(label)) > MOST_CLASSES:
                raise ValueError(f"{name}: the label {label!r} is not a class number")
            if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
                raise ValueError(f"{name!r} is not the name of a file below the folder")
            if labels.setdefault(name, int(label)) != int(label):
                raise ValueError(f"{name} is listed with labels {labels[name]} and {int(label)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a labels file ({error}); a dataset.json or a CSV with columns file,label is needed") from error
    if not labels:
        raise ValueError(f"{path}: lists no images")
    return labels


def check_labels(labels: Labels, classes: int, name: Callable[[int], str]) -> None:
    """Raises ValueError naming (by `name`, a function of its number) the first image whose label is no class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(f"{name(int(wrong[0]))}: its label is {labels[wrong[0]]}; with {classes} classes it must be 0 to {classes - 1}")
