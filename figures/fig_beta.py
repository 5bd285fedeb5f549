"""Which layers the router chose, run beside run: weights over t, and beta over training below; a column a method."""

from __future__ import annotations

import re
from string import ascii_lowercase

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._maps import ROW
from gsnr.figures.fig5_router import WEIGHT_LIMITS, heat_over_t, history, lines_of, weights_of
from gsnr.figures.style import PAGE, paper

TABLE = "router"
SEVERAL_RUNS = True
TITLE = "Which layers the router chose, run beside run"
CAPTION = (
    "A column a method: raw, standardised, ... features. Above: the weights beta of the groups and alpha of the layers within each, over t, "
    "mean over seeds (runs whose names end in -s0, -s1, ...). Below: beta of the deep group over training at three times; dotted grey: the "
    "uniform mixture."
)
COLUMNS, MOST = 3, 12  # panels a row, and in all


def method_of(run: str) -> str:
    """A run's name without the seed that `gsnr grid` appends: "ahpa-s1" -> "ahpa"."""
    return re.sub(r"-s\d+$", "", run)


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: the `router` tables of the runs, one after another. Raises ValueError for tables without beta, or of too many methods."""
    rows, log = weights_of(metrics, "router"), weights_of(metrics, "router_log")
    if not (rows["metric"] == "beta").any():
        raise ValueError("fig_beta: the tables hold no weights beta; measure runs of a router with --probe router")
    rows, log = (part.assign(method=part["run"].map(method_of)) for part in (rows, log))
    methods = list(dict.fromkeys(rows["method"]))
    if len(methods) > MOST:
        raise ValueError(f"fig_beta: {len(methods)} methods (runs without -s0, -s1, ...), and room for {MOST}; name fewer with --run")
    lines, columns = lines_of(rows), min(COLUMNS, len(methods))
    bands = -(-len(methods) // columns)
    heights = (0.75 + ROW * len(lines), 1.5) * bands
    with paper():
        figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
        panels = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=heights)
        for i, (method, letter) in enumerate(zip(methods, ascii_lowercase, strict=False)):
            above, below = panels[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
            here = rows[rows["method"] == method]
            mesh = heat_over_t(above, here, lines)
            seeds = here["run"].nunique()
            above.set_title(f"({letter}) {method}" + (f", {seeds} seeds" if seeds > 1 else ""), loc="left")
            above.set_ylabel("group, and layer within it" if i % columns == 0 else "")
            below.set(xlabel="training step", ylabel=r"$\beta$ deep")
            trained = log[log["method"] == method]
            if (trained["step"] > 0).any():
                history(below, trained)
            else:
                below.text(0.5, 0.5, "no step of training was logged", ha="center", va="center", transform=below.transAxes)
            below.set_ylim(WEIGHT_LIMITS)
            if i and below.get_legend():
                below.get_legend().remove()
            if i % columns:
                above.set_yticklabels([])
                above.set_ylabel("the same rows")
        for i in range(len(methods), bands * columns):
            for axes in panels[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]:
                axes.set_visible(False)
        figure.colorbar(mesh, ax=panels[0], label="weight", pad=0.02, aspect=20)
    return figure
