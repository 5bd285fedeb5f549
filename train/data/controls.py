"""Negative controls: the features that an alignment reads are those of another image, random numbers, or one mean (`--data.control`); and captions
are those of another image (`--data.captions`).

A target that says nothing about its image shows what an alignment does for reasons that have nothing to do with it. Everything else of a sample
stays as it is. Of the same seed, a control is the same in every run. Shapes: N images, group (L,C,g,g), its layers' means and stds (L,C).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsnr.train.config import CLASS_TOKEN
from gsnr.train.data import rng
from gsnr.train.data.cache import Over, Rows, Split
from gsnr.train.data.heldout import partners

NONE, SHUFFLED, WITHIN_CLASS, RANDOM, CONSTANT = "none", "shuffled", "shuffled_class", "random", "constant"
CONTROLS = (SHUFFLED, WITHIN_CLASS, RANDOM, CONSTANT)


class ControlledSplit(Over):
    """See `gsnr.train.data.cache.Split`. control: "shuffled", features of another image, by one random cycle through all images of the split;
    "shuffled_class", of another one of the same class; "random", Gaussian numbers of the image's own with each channel's mean and standard
    deviation; "constant", each channel's mean at every token. Statistics are those of the train split."""

    def __init__(self, stored: Split, control: str, seed: int) -> None:
        self.stored, self.control, self.seed = stored, control, seed
        self.header, self.size = stored.header, stored.size
        self.partner_N: NDArray[np.int64] | None = None
        if control in (SHUFFLED, WITHIN_CLASS):
            labels = stored.take(np.arange(self.size, dtype=np.int64), ("label",))["label"] if control == WITHIN_CLASS else None
            self.partner_N = partners(self.size, seed, labels)

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        groups = tuple(name for name in columns if name in self.header.groups and name != CLASS_TOKEN)  # which the model itself is trained on
        others = tuple(name for name in columns if name not in groups)
        rows = self.stored.take(index_N, others, view) if others else {}
        if not groups:
            return rows
        if self.partner_N is not None:
            return rows | self.stored.take(self.partner_N[index_N], groups, view)
        return rows | {group: self._made(group, index_N) for group in groups}

    def _made(self, group: str, index_N: NDArray[np.int64]) -> NDArray[np.float16]:
        """(N,L,C,g,g)."""
        shape, statistics = self.header.groups[group], self.stored.statistics()
        mean_LC11, std_LC11 = (statistics[f"{group}_{which}"][..., None, None] for which in ("mean", "std"))
        made = np.broadcast_to(mean_LC11, (len(index_N), *shape))
        if self.control == RANDOM:
            made = made + std_LC11 * rng.normals(self.seed, "control", index_N, list(self.header.groups).index(group), shape)
        return made.astype(np.float16)


class ShuffledCaptions(Over):
    """See `gsnr.train.data.cache.Split`: the captions of another image, by one random cycle through all images of the split."""

    def __init__(self, stored: Split, seed: int) -> None:
        self.stored, self.header, self.size = stored, stored.header, stored.size
        self.partner_N = partners(stored.size, seed)

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        return self.stored.take(index_N, columns, view)

    def texts(self, index_N: NDArray[np.int64], u_N: NDArray[np.float64]) -> NDArray[np.float32]:
        return self.stored.texts(self.partner_N[index_N], u_N)

    def captions(self, index_N: NDArray[np.int64]) -> list[tuple[str, ...]]:
        return self.stored.captions(self.partner_N[index_N])


def with_captions(splits: dict[str, Split], captions: str, seed: int) -> dict[str, Split]:
    """The splits as they are for "own", or else each with captions of other images."""
    return splits if captions == "own" else {name: ShuffledCaptions(split, seed) for name, split in splits.items()}


def controlled(splits: dict[str, Split], control: str, seed: int) -> dict[str, Split]:
    """The splits as they are for "none", or else each under the control."""
    return splits if control == NONE else {name: ControlledSplit(split, control, seed) for name, split in splits.items()}
