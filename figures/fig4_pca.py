"""Fig. 4 of the AHPA paper: one image a row, one group of features a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import PAGE, paper

TABLE = "vae_pca"
KIND = "maps"
BESIDE = "vae_pca"
TITLE = "What each group of the VAE's layers sees (AHPA Fig. 4)"
CAPTION = (
    "The first column is the VAE's reconstruction. Red, green and blue are the first three components over all tokens of the set, from their 1st to "
    "their 99th percentile: equal colours mean equal features within a column only. Per cent: the share of the variance that the three "
    "explain."
)
ROWS = 6
NAMES = {"image": "reconstruction"}


def _picture(pixels: pd.DataFrame) -> NDArray[np.float64]:
    """(h,w,3)."""
    ordered = pixels.sort_values(["y", "x"])
    return ordered[["red", "green", "blue"]].to_numpy().reshape(ordered["y"].max() + 1, ordered["x"].max() + 1, 3)


def _head(group: str, explained: list[dict[str, Any]]) -> str:
    """The name of a column; below it the share of the variance that its colours show, where it was measured."""
    shares = [row["value"] for row in explained if row["metric"] == "explained_variance" and row["group"] == group]
    below = f"{100 * sum(shares):.0f} % of variance" if shares else ""
    return f"{NAMES.get(group, group)}\n{below}"


def draw(maps: pd.DataFrame) -> Figure:
    """maps: a `vae_pca.maps` table of one checkpoint's data, attrs["beside"] the rows of `vae_pca`.

    Raises ValueError for a table without rows, or of several checkpoints."""
    one_checkpoint(maps)
    groups = list(dict.fromkeys(maps["group"]))
    images = sorted(maps["image_id"].unique())[:ROWS]
    size = min(1.1, PAGE / len(groups))
    with paper():
        figure = Figure(figsize=(size * len(groups), size * len(images) + 0.35), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)  # type: ignore[union-attr,call-arg]
        panels = figure.subplots(len(images), len(groups), squeeze=False)
        by_place = dict(list(maps.groupby(["image_id", "group"])))
        for row, image in enumerate(images):
            for column, group in enumerate(groups):
                axes = panels[row, column]
                axes.imshow(_picture(by_place[(image, group)]), interpolation="nearest")
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(_head(str(group), maps.attrs.get("beside", [])), fontsize=7)
    return figure
