"""Runs side by side, each with its own backbone and its own first target."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import GSNR, curve, keys_of, rows_of, symlog
from gsnr.figures.fig_direction import COSINE, resolved_only
from gsnr.figures.style import LINES, PAGE, T_LABEL, paper
from gsnr.figures.targets import MARKERS, Key, Targets

TABLE = "alignment"
SEVERAL_RUNS = True
TITLE = "Each run's own target, on the run's own backbone: its signal, and its direction"
CAPTION = (
    "A run's first target is what it was aligned to, if anything; projectors are fitted. The backbones differ, so this is no ranking of "
    "targets: fig2_gsnr of one vanilla backbone is. Left: B x G-SNR, linear up to 10, logarithmic beyond; shaded: 95 % intervals of bins; open "
    "markers: not detected, or not above its floor. Right: cosines whose interval is wider than the range, or whose alignment gradient is not "
    "above its floor, are left out; open markers: the interval holds 0."
)
MOST = 7  # curves that can be told apart


def styles_of(keys: list[Key], targets: Targets) -> list[dict[str, Any]]:
    """Targets look as everywhere; a second run of a target, and further ones, have its colour with another marker and line."""
    taken, times = {targets.looks[target] for target, _, _ in keys}, Counter[str]()
    styles = []
    for key in keys:
        style, again = targets.style(key), times[key[0]]
        if again:
            marker = next(marker for marker in MARKERS if (style["color"], marker) not in taken)
            taken.add((style["color"], marker))
            style |= {"marker": marker, "ls": LINES[again % len(LINES)]}
        times[key[0]] += 1
        styles.append(style)
    return styles


def draw(cells: pd.DataFrame) -> Figure:
    """cells: the `alignment` tables of the runs, one after another. Raises ValueError for tables without fitted projectors, or too many runs."""
    targets = Targets(cells)
    cells = cells[(cells["group"] == "all") & (cells["projector"] == "fit") & (cells["control"] == "none")]
    runs = list(dict.fromkeys(zip(cells["run"], cells["checkpoint"], strict=True)))
    if not runs:
        raise ValueError("fig_methods: the tables have no projectors that were fitted; measure again with --projector fit")
    if len(runs) > MOST:
        raise ValueError(f"fig_methods: {len(runs)} runs, and room for {MOST}; name fewer with --run")
    batch_ref = int(cells["batch_ref"].iloc[0])
    with paper():
        figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        each = [cells[(cells["run"] == run) & (cells["checkpoint"] == checkpoint)] for run, checkpoint in runs]
        keys = [keys_of(here)[0] for here in each]
        for i, (here, key, style) in enumerate(zip(each, keys, styles_of(keys, targets), strict=True)):
            rows = rows_of(here, key)
            style |= {"label": f"{runs[i][0]}: {targets.name(key)}"}
            curve(left, rows, GSNR, batch_ref, style)
            curve(right, resolved_only(rows), COSINE, 1.0, style)
        left.set_ylabel(f"{batch_ref} $\\times$ G-SNR")
        symlog([left])
        left.set_title("(a) of each run's first target", loc="left")
        right.axhspan(-1, 1, color="0.95", zorder=-1)
        right.set_ylabel("cosine to the denoising gradient")
        right.set_title("(b) its direction", loc="left")
        for axes in (left, right):
            axes.axhline(0, color="black", lw=0.6, zorder=0)
            axes.set(xlim=(0, 1), xlabel=T_LABEL)
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
