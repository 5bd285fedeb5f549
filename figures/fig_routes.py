"""Whom each sublayer of a routed model listens to, over depth and over t (after DAR's Fig. 3, right)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures._sublayers import depth_of, map_of, matrix, number_of, over_t
from gsnr.figures.style import PAGE, paper

TABLE = "residual_stream"
TITLE = "Whom each sublayer of a routed model listens to"
CAPTION = (
    "Weights of the mixture that each sublayer reads, mean over tokens and images; those of a reader sum to 1. (a) Mean over t; each block is "
    "attention, then MLP. A finished chunk is one source, drawn over all its sublayers. Grey: not read. (b) Entropy of the weights over that of "
    "equal weights: 1 listens to all sources alike, 0 to one. (c), (d) Two readers over t."
)
WEIGHT, ENTROPY = "routing_weight", "routing_entropy"
COLOURS: dict[str, Any] = {"cmap": "cividis", "vmin": 0.0}


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `residual_stream` table of one checkpoint of a routed model. Raises ValueError for one of several, or without weights."""
    one_checkpoint(metrics)
    rows, entropy = metrics[metrics["metric"] == WEIGHT], metrics[metrics["metric"] == ENTROPY]
    if rows.empty or entropy.empty:
        raise ValueError(f"fig_routes: the table has no rows '{WEIGHT}' and '{ENTROPY}', which routed models have and plain ones have not")
    depth = depth_of(rows)
    readers = [f"attention {-(-depth // 2)}", "final"]
    entropy = entropy.assign(number=entropy["group"].map(lambda name: number_of(name, depth))).sort_values(["number", "bin"])
    most = float(rows.loc[rows["group"] != "attention 1", "value"].max())  # the first reads the embedding alone
    with paper():
        figure = Figure(figsize=(PAGE, 4.6), layout="constrained")
        (upper, right), lower = figure.subplots(2, 2)
        meshes = [map_of(upper, matrix(rows, depth), depth, **COLOURS, vmax=most)]
        upper.set_title("(a) mean over t", loc="left")
        of_entropy = over_t(right, entropy, "group", False, cmap="viridis", vmin=0.0, vmax=1.0)
        right.set_title("(b) entropy", loc="left")
        right.set_ylabel("read by")
        figure.colorbar(of_entropy, ax=right, label="entropy / that of equal weights", pad=0.01, aspect=20)
        for axes, letter, reader in zip(lower, "cd", readers, strict=True):
            name = "the final layer" if reader == "final" else reader
            meshes.append(over_t(axes, rows[rows["group"] == reader], "target", False, **COLOURS, vmax=most))
            axes.set_title(f"({letter}) read by {name}", loc="left")
            axes.set_ylabel("written by")
        for axes, mesh in zip((upper, lower[1]), meshes[1:], strict=True):
            figure.colorbar(mesh, ax=axes, label="weight", pad=0.01, aspect=20)
    return figure
