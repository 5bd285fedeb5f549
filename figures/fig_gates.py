"""Which earlier outputs a sublayer would rather hear louder or softer: gradients of gates in a plain residual stream (after DAR's Fig. 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures._maps import hatch, hatched
from gsnr.figures._sublayers import depth_of, map_of, matrix, over_t
from gsnr.figures.style import PAGE, paper

TABLE = "residual_stream"
TITLE = "Which earlier outputs each sublayer would rather hear louder, or softer"
CAPTION = (
    "A plain stream gives every sublayer the sum of what earlier ones wrote, each with weight 1. Colour: how the velocity loss of a sample would "
    "change with that weight, at this sublayer alone; orange: louder raises the loss, purple: louder lowers it. The scale is logarithmic but near 0. "
    "(a) Mean over t; each block is attention, then MLP. (b), (c) Two sublayers over t. Hatched: the 95 % interval over images holds 0; in (a) one "
    "with the mean half-width of all t, which is too wide if anything."
)
METRIC = "gate_gradient"
LINEAR = 0.1  # of the scale's end: linear up to here


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `residual_stream` table of one checkpoint of a plain model. Raises ValueError for one of several, or without gates."""
    one_checkpoint(metrics)
    rows = metrics[metrics["metric"] == METRIC]
    if rows.empty:
        raise ValueError(f"fig_gates: the table has no rows '{METRIC}', which plain models have and routed ones have not")
    depth = depth_of(rows)
    readers = [f"attention {-(-depth // 2)}", f"attention {depth}"]
    value, half = (matrix(part, depth)[:-1, :-1] for part in (rows, rows.assign(value=(rows["high"] - rows["low"]) / 2)))
    shown = rows[rows["group"].isin(readers)]
    largest = float(np.nanmax(np.abs(np.concatenate([value.ravel(), shown["value"]])))) or 1.0
    decade = 10.0 ** np.floor(np.log10(largest))
    colours = {"norm": SymLogNorm(linthresh=LINEAR * largest, vmin=-largest, vmax=largest), "cmap": "PuOr_r"}
    with paper():
        figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
        left, *others = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        mesh = map_of(left, value, depth, **colours)
        hatch(left, np.arange(len(value) + 1), np.abs(value) <= half)
        left.set_title("(a) mean over t", loc="left")
        for axes, letter, reader in zip(others, "bc", readers, strict=True):
            over_t(axes, rows[rows["group"] == reader], "target", True, **colours)
            axes.set_title(f"({letter}) heard by {reader}", loc="left")
            axes.set_ylabel("written by")
        bar = figure.colorbar(mesh, ax=[left, *others], label=r"$\partial L/\partial g$", pad=0.01, aspect=30)
        bar.set_ticks([-decade, -decade / 10, 0, decade / 10, decade], minor=False)
        bar.minorticks_off()
        note = "orange: louder raises the loss; purple: louder lowers it"
        figure.legend(handles=[hatched("the 95 % interval holds 0")], title=note, loc="outside lower center")
    return figure
