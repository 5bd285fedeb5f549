"""Methods: each run's first target (what it was aligned to, if anything) with a fitted projector on its own backbone: B x G-SNR and the angle to
denoising over t."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import curve, keys_of, rows_of
from gsnr.figures.fig2_gsnr import GSNR
from gsnr.figures.fig_direction import COSINE, resolved_only
from gsnr.figures.style import COLOURS, MARKERS, PAGE, T_LABEL, paper
from gsnr.table import target_name

TABLE = "alignment"
SEVERAL_RUNS = True
MOST = len(COLOURS)  # curves that can be told apart


def draw(cells: pd.DataFrame) -> Figure:
    """cells: the `alignment` tables of the runs, one after another. The backbones differ, so this is no ranking of targets: `fig2_gsnr` of
    one vanilla backbone is. Left: linear below 10, logarithmic beyond. Right: cosines whose interval is wider than the range are left out."""
    cells = cells[(cells["group"] == "all") & (cells["projector"] == "fit") & (cells["control"] == "none")]
    runs = list(dict.fromkeys(zip(cells["run"], cells["checkpoint"], strict=True)))
    if not runs:
        raise ValueError("fig_methods: the tables have no projectors that were fitted; measure again with --projector fit")
    if len(runs) > MOST:
        raise ValueError(f"fig_methods: {len(runs)} runs, and colours for {MOST}; name fewer with --run")
    batch_ref = int(cells["batch_ref"].iloc[0])
    with paper():
        figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, (run, checkpoint) in enumerate(runs):
            here = cells[(cells["run"] == run) & (cells["checkpoint"] == checkpoint)]
            key = keys_of(here)[0]
            rows = rows_of(here, key)
            style = {"color": COLOURS[i], "marker": MARKERS[i], "ls": "-", "label": f"{run}: {target_name(*key)}"}
            shift = 0.09 * (i - (len(runs) - 1) / 2)
            curve(left, rows, GSNR, batch_ref, style, shift)
            curve(right, resolved_only(rows), COSINE, 1.0, style, shift)
        left.set_ylabel(f"{batch_ref} $\\times$ G-SNR")
        left.set_yscale("symlog", linthresh=10)
        left.set_title("(a) of each run's first target", loc="left")
        right.axhspan(-1, 1, color="0.95", zorder=-1)
        right.set_ylabel("cosine to the denoising gradient")
        right.set_title("(b) its direction", loc="left")
        for axes in (left, right):
            axes.axhline(0, color="black", lw=0.6, zorder=0)
            axes.set(xlim=(0, 1), xlabel=T_LABEL)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
