"""The folder of MS-COCO that U-ViT's preparation writes, and REPA's text-to-image training reads (with pictures beside).

    DATA/train/17.npy           float32 (2C,h,w), or with a leading one: the posterior's mean, then the logarithm of its variance, not scaled
    DATA/train/17_0.npy ...     (L,C): the states of image 17's captions, CLIP ViT-L/14's last hidden ones of 77 positions
    DATA/train/17.png           the picture (REPA's; not read)
    DATA/val/                   the same of other images: these are held out, all of them, where the folder is there
    DATA/empty_context.npy      (L,C): the states of the empty caption

DATA may be `train` or `val` itself, or hold the numbered files; then some images are held out as of other latents. Seen in the code of both, not on
a disk of theirs. The words of the captions are nowhere in it. Images and captions are numbered as in COCO's annotations, by the images' ids: where
captions_train2014.json and captions_val2014.json lie beside EMPTY, or in `annotations`, the words are theirs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsnr.train.data import coco

EMPTY, PARTS = "empty_context.npy", {"train": "train", "heldout": "val"}  # split -> sub-folder
NUMBERED = re.compile(r"(\d+)(?:_(\d+))?\.npy")
LOG_VARIANCES = (-30.0, 20.0)  # what both clamp them to


def _root(folder: Path) -> Path | None:
    """The folder that EMPTY lies in; None where it is none of these."""
    inside = (folder / PARTS["train"]).is_dir() or (folder / "0.npy").is_file()
    return next((place for place in (folder, folder.absolute().parent) if inside and (place / EMPTY).is_file()), None)


def recognises(folder: Path) -> bool:
    return _root(folder) is not None


def _read(path: Path, dimensions: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """shape: that it must have, or () for any of so many dimensions. Raises ValueError naming the file."""
    try:
        found = np.load(path, allow_pickle=False)
        found = found[0] if found.ndim == dimensions + 1 and len(found) == 1 else found
        if found.ndim != dimensions or shape not in ((), found.shape) or found.dtype.kind != "f":
            raise ValueError(f"{found.dtype} of shape {found.shape}, not {shape or f'{dimensions} dimensions'}")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: missing or damaged ({error})") from error
    return found.astype(np.float32, copy=False)


def _counts(folder: Path) -> NDArray[np.int64]:
    """(N,) captions of each image. Raises ValueError, counting them, for images or captions that are missing."""
    images, captions = set[int](), dict[int, set[int]]()
    with os.scandir(folder) as entries:
        for found in filter(None, (NUMBERED.fullmatch(entry.name) for entry in entries)):
            if found[2] is None:
                images.add(int(found[1]))
            else:
                captions.setdefault(int(found[1]), set()).add(int(found[2]))
    highest = max((*images, *captions), default=-1)
    missing = [f"{k}.npy" for k in range(highest + 1) if k not in images]
    missing += [f"{k}_{n}.npy" for k in range(highest + 1) for n in range(max(captions.get(k, {0})) + 1) if n not in captions.get(k, ())]
    if missing or highest < 0:
        raise ValueError(f"{folder}: {len(missing)} files are missing, the first {missing[0]}" if missing else f"{folder}: holds no numbered files")
    return np.array([len(captions[k]) for k in range(highest + 1)], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class States:
    """Of captions. See `gsnr.train.data.latent_folders.TextStates`."""

    store: Store
    shape: tuple[int, int]
    counts: NDArray[np.int64]  # (N,)

    def captions(self, number_N: NDArray[np.int64]) -> list[tuple[str, ...]]:
        return [self.store.words(number) for number in number_N]

    def take(self, number_N: NDArray[np.int64], u_N: NDArray[np.float64]) -> NDArray[np.float32]:
        which_N = (u_N * self.counts[number_N]).astype(np.int64)
        paths = [self.store.path(number, f"_{which}") for number, which in zip(number_N, which_N, strict=True)]
        return np.stack([_read(path, 2, self.shape) for path in paths])

    def null(self) -> NDArray[np.float32]:
        return _read(self.store.root / EMPTY, 2, self.shape)


class Store:
    """See `gsnr.train.data.latent_folders.Store`. Raises ValueError for files that are missing, and for a first one that cannot be read."""

    kind = "U-ViT's"
    pictures = Path("COCO/train2014")  # captions are prepared with COCO's own

    def __init__(self, folder: Path) -> None:
        self.folder, root = folder, _root(folder)
        assert root is not None
        self.root = root
        inside = {split: folder / name for split, name in PARTS.items() if (folder / name).is_dir()} or {"train": folder}
        counts = {split: _counts(place) for split, place in inside.items()}
        ends = np.cumsum([0, *(len(some) for some in counts.values())])
        self.parts = list(zip(ends[:-1].tolist(), inside.values(), counts.values(), strict=True))
        self.members = {split: np.arange(*ends[k : k + 2], dtype=np.int64) for k, split in enumerate(counts)} if len(counts) > 1 else None
        self.known: dict[Path, list[tuple[str, ...]]] = {}
        self.labels = np.zeros(ends[-1], np.int64)
        self.shape: tuple[int, ...] = ()
        first = _read(self.path(0), 3, ())
        if not (first[len(first) // 2 :] < 0).any():
            raise ValueError(f"{self.path(0)}: its second half is nowhere negative: standard deviations, where U-ViT has logarithms of variances")
        self.shape = first.shape
        height, width = _read(self.root / EMPTY, 2, ()).shape
        self.text = States(store=self, shape=(height, width), counts=np.concatenate(list(counts.values())))

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def _part(self, number: int) -> tuple[int, Path, NDArray[np.int64]]:
        """(its first image, its folder, captions of each) of the part that an image is in."""
        return next(part for part in reversed(self.parts) if part[0] <= number)

    def path(self, number: int, suffix: str = "") -> Path:
        """The file of an image, or with its suffix of a caption."""
        start, place, _ = self._part(number)
        return place / f"{number - start}{suffix}.npy"

    def words(self, number: int) -> tuple[str, ...]:
        """The captions of an image. Raises ValueError where the annotations are missing, or are not of these files."""
        start, place, counts = self._part(number)
        if place not in self.known:
            self.known[place] = self._annotated(place, counts)
        return self.known[place][number - start]

    def _annotated(self, place: Path, counts: NDArray[np.int64]) -> list[tuple[str, ...]]:
        part = place.name if place.name in PARTS.values() else PARTS["train"]
        paths = sorted([*self.root.glob(f"captions_{part}*.json"), *self.root.glob(f"annotations/captions_{part}*.json")])
        if not paths:
            raise ValueError(f"{place}: holds the states of captions, not their words; put COCO's captions_{part}2014.json into {self.root}")
        found = [tuple(captions) for captions in coco.read(paths[0]).values()]
        if counts.tolist() != [len(captions) for captions in found]:
            raise ValueError(f"{paths[0]}: not the captions of {place}: the number of images, or of their captions, is another")
        return found

    def name(self, number: int) -> str:
        return str(self.path(number))

    def moments(self, number_N: NDArray[np.int64]) -> NDArray[np.float32]:
        moments = np.stack([_read(self.path(number), 3, self.shape) for number in number_N])
        mean, log_variance = np.split(moments, 2, axis=1)
        return np.concatenate([mean, np.exp(0.5 * log_variance.clip(*LOG_VARIANCES))], axis=1)

    def channels(self, stats: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Raises ValueError for what is no factor."""
        if stats in ("", "vae"):
            return (), ()
        try:
            factor = float(stats)
        except ValueError as error:
            wanted = "a factor for all channels (U-ViT's own runs: 0.23010), or `vae` for the VAE's"
            raise ValueError(f"--data.latent-stats {stats}: U-ViT's latents take {wanted}") from error
        channels = self.shape[0] // 2
        return (factor,) * channels, (0.0,) * channels
