"""The folder that REPA's preprocessing writes (and EDM2's, from which it comes).

    DATA/vae-sd/00000/img-mean-std-00000000.npy    float32 (2C,h,w): the posterior's mean, then its standard deviation, not scaled
    DATA/vae-sd/dataset.json                       {"labels": [["00000/img-mean-std-00000000.npy", 5], ...]}
    DATA/images/                                   the cropped pictures, with a dataset.json of their own

Image i is the i-th name in sorted order, which is also how REPA counts. DATA may be `vae-sd` itself. Seen in REPA's code, not on a disk of
theirs: the file names above are its default, and nothing here depends on them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsnr.train.data.labels import read_labels

LATENTS = "vae-sd"
LABELS = "dataset.json"


def _latents(folder: Path) -> Path:
    return folder if folder.name == LATENTS else folder / LATENTS


def recognises(folder: Path) -> bool:
    return (_latents(folder) / LABELS).is_file()


class Store:
    """See `gsnr.train.data.latent_folders.Store`. Raises ValueError for labels or a first file that cannot be read."""

    kind = "REPA"
    members, text = None, None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latents = _latents(folder)
        self.pictures = self.latents.parent / "images"
        labels = read_labels(self.latents / LABELS)
        self.names = np.array(sorted(labels))
        self.labels = np.array([labels[name] for name in self.names], dtype=np.int64)
        self.shape: tuple[int, ...] = ()
        self.shape = self._read(0).shape

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def name(self, number: int) -> str:
        return str(self.latents / self.names[number])

    def moments(self, number_N: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([self._read(number) for number in number_N])

    def channels(self, stats: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if stats not in ("", "vae"):
            raise ValueError(f"--data.latent-stats {stats}: REPA latents take the VAE's scaling factor; leave it out")
        return (), ()

    def _read(self, number: int) -> NDArray[np.float32]:
        try:
            moments = np.load(self.name(number), allow_pickle=False)
            if moments.ndim != 3 or self.shape not in ((), moments.shape):
                raise ValueError(f"shape {moments.shape}, not {self.shape or '(2C, h, w)'}")
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{self.name(number)}: missing or damaged ({error})") from error
        return moments.astype(np.float32, copy=False)
