"""Data that are sorted by class, rotate through the classes, or are shuffled: the same images give the same verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gsnr.probes import alignment
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.resume_cache import ResumeCache
from gsnr.train.data.cache import Rows, Split
from tests.probes.subjects import subject_of


class Ordered:
    """A split whose images come in another order; see `train.data.cache.Split`."""

    def __init__(self, split: Split, place_N: NDArray[np.int64]) -> None:
        self.split, self.place_N, self.header, self.size = split, place_N, split.header, len(place_N)

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        return self.split.take(self.place_N[index_N], columns, view)

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        return self.split.statistics()


IMAGES = 48  # of either split


def places(split: Split, how: str) -> NDArray[np.int64]:
    """The first images of the split in an order of that kind."""
    labels = split.take(np.arange(IMAGES), ("label",))["label"]
    within = pd.Series(labels).groupby(labels).cumcount().to_numpy()
    keys = {"sorted": (within, labels), "rotating": (labels, within), "shuffled": (np.random.default_rng(0).random(IMAGES),)}
    return np.lexsort(keys[how])


def test_verdicts_do_not_depend_on_the_order_of_the_data(smoke_run: Path, tmp_path: Path) -> None:
    """All images, in three orders of either split: the checkpoint's projector and fitted ones, and their controls. Noise, times and partners go by
    place, so numbers differ within their intervals; what is detected and above its floor does not."""
    subject = subject_of(smoke_run)
    options = TargetOptions(bins=1, n_images=IMAGES, targets=("own",), controls=("shuffled",), fit_samples=512)
    found = []
    for how in ("sorted", "rotating", "shuffled"):
        splits = {name: Ordered(split, places(split, how)) for name, split in subject.splits.items()}
        rows, _ = alignment.run(replace(subject, splits=splits), options, ResumeCache(tmp_path / how), None)
        cells = pd.DataFrame(rows["cells"])
        found.append(cells[cells["group"] == "all"].set_index(["projector", "control"]))
    detected = ~found[0]["below_detection"]
    assert list(detected.loc["ckpt"]) == [True, True] and not detected.loc[("fit", "shuffled")]
    for cells in found:
        clear = [("ckpt", "none"), ("ckpt", "shuffled"), ("fit", "shuffled")]  # after 30 steps of training the fitted target is at its limit
        assert cells.loc[clear, ["below_detection", "above_floor"]].equals(found[0].loc[clear, ["below_detection", "above_floor"]])
        half = [one["gsnr_high"] - one["gsnr"] for one in (cells, found[0])]
        assert ((cells["gsnr"] - found[0]["gsnr"]).abs() < half[0] + half[1]).all()
