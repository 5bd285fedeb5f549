"""Whom each sublayer of a routed model listens to, over depth and over t (after DAR's Fig. 3, right)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures._maps import as_text, by_bin, edges_of, numbers
from gsnr.figures._sublayers import depth_of, map_of, matrix, number_of, over_t
from gsnr.figures.style import PAGE, paper

TABLE = "residual_stream"
TITLE = "Whom each sublayer of a routed model listens to"
CAPTION = (
    "Weights of the mixture that each sublayer reads, mean over tokens and images, times the number of its sources: 1 is what equal weights, "
    "which training starts from, give to each; orange: heard more, purple: less. (a) Mean over t; each block is attention, then MLP. A finished"
    " chunk is one source, drawn over all its sublayers. Grey: not read. (b) Entropy of the weights over that of equal weights: 1 listens to "
    "all alike, 0 to one. (c), (d) Two readers over t: of those in the middle the one with most sources, and the final layer."
)
WEIGHT, ENTROPY = "routing_weight", "routing_entropy"
LABEL = "weight / equal weight"


def _middle(rows: pd.DataFrame, depth: int) -> str:
    """Of the readers in the middle third the first with most sources."""
    sources = rows.groupby("group", sort=False)["target"].nunique()
    inside = [name for name in sources.index if 2 * depth <= 3 * number_of(name, depth) <= 4 * depth]
    return str(sources[inside].idxmax())


def _over_t(axes: Axes, rows: pd.DataFrame, column: str, **colours: Any) -> QuadMesh:
    mesh = over_t(axes, rows, column, False, **colours)
    numbers(axes, edges_of(rows), mesh, as_text(by_bin(rows, column, list(dict.fromkeys(rows[column])), "value"), ".2f"))
    return mesh


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `residual_stream` table of one checkpoint of a routed model. Raises ValueError for one of several, or without weights."""
    one_checkpoint(metrics)
    rows, entropy = metrics[metrics["metric"] == WEIGHT], metrics[metrics["metric"] == ENTROPY]
    if rows.empty or entropy.empty:
        raise ValueError(f"fig_routes: the table has no rows '{WEIGHT}' and '{ENTROPY}', which routed models have and plain ones have not")
    depth = depth_of(rows)
    rows = rows.assign(value=rows["value"] * rows.groupby(["group", "bin"])["target"].transform("count"))
    entropy = entropy.assign(number=entropy["group"].map(lambda name: number_of(name, depth))).sort_values(["number", "bin"])
    most = max(0.05, float((rows["value"] - 1).abs().max()))
    colours: dict[str, Any] = {"cmap": "PuOr_r", "vmin": 1 - most, "vmax": 1 + most}
    with paper():
        figure = Figure(figsize=(PAGE, 4.6), layout="constrained")
        (upper, right), lower = figure.subplots(2, 2)
        mesh = map_of(upper, matrix(rows, depth), depth, **colours)
        upper.set_title("(a) mean over t", loc="left")
        figure.colorbar(mesh, ax=upper, label=LABEL, pad=0.01, aspect=20)
        mesh = _over_t(right, entropy, "group", cmap="viridis", vmin=min(0.9, float(entropy["value"].min())), vmax=1.0)
        right.set_title("(b) entropy", loc="left")
        right.set_ylabel("read by")
        figure.colorbar(mesh, ax=right, label="entropy / that of equal weights", pad=0.01, aspect=20)
        for axes, letter, reader in zip(lower, "cd", (_middle(rows, depth), "final"), strict=True):
            mesh = _over_t(axes, rows[rows["group"] == reader], "target", **colours)
            name = "the final layer" if reader == "final" else reader.replace("mlp", "MLP")
            axes.set_title(f"({letter}) read by {name}", loc="left")
            axes.set_ylabel("written by")
        figure.colorbar(mesh, ax=lower[1], label=LABEL, pad=0.01, aspect=20)
    return figure
