"""The captions of a set of images, in its order: a text file, one a line, or an .npz with `captions`. Samples may bring their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gsnr.train.evaluation.images import DAMAGED, ImageSet

MEMBER, TEXT = "captions", "captions.txt"


def of(samples: ImageSet, path: Path | None) -> list[str]:
    """Those of `path`; without one, those that lie with the samples. Raises ValueError where there are none, or not one an image."""
    found = _beside(samples) if path is None else read(path)
    if found is None:
        raise ValueError(f"--samples {samples.path}: says no captions; name a file of them with --captions: one a line, or an .npz with {MEMBER}")
    where = f"--captions {path}" if path is not None else f"--samples {samples.path}"
    if len(found) != samples.n:
        raise ValueError(f"{where}: {len(found)} captions, and --samples {samples.path} holds {samples.n} images; one caption an image is needed")
    return found


def read(path: Path, flag: str = "--captions") -> list[str]:
    """The captions in a file, in order. Raises ValueError naming the flag and the file for what holds none."""
    if not path.is_file():
        raise ValueError(f"{flag} {path}: no such file; a text file with one caption a line, or an .npz with {MEMBER}, is needed")
    if path.suffix == ".npz":
        found = _stored(path, flag)
        if found is None:
            raise ValueError(f"{flag} {path}: holds no {MEMBER}; a one-dimensional array of strings is needed")
        return found
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag} {path}: is no UTF-8 text ({error.reason} at byte {error.start})") from error


def _beside(samples: ImageSet) -> list[str] | None:
    if samples.path.is_dir():
        lines = samples.path / TEXT
        return read(lines, "--samples") if lines.is_file() else None
    return _stored(samples.path, "--samples")


def _stored(path: Path, flag: str) -> list[str] | None:
    """None where an .npz has none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if MEMBER not in arrays:
                return None
            found = arrays[MEMBER]
    except (OSError, *DAMAGED) as error:
        raise ValueError(f"{flag} {path}: cannot be read ({' '.join(str(error).split())})") from error
    if found.ndim != 1 or found.dtype.kind != "U":
        raise ValueError(f"{flag} {path}: {MEMBER} is {found.dtype} {found.shape}, not a one-dimensional array of strings")
    return [str(caption) for caption in found]
