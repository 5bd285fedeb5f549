"""Beta over t of several runs side by side: one panel a method, one line a group and seed."""

from __future__ import annotations

import re
from itertools import cycle
from string import ascii_lowercase

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import grid
from gsnr.figures.fig5_router import WEIGHT_LIMITS
from gsnr.figures.style import COLOURS, GREY, LINES, PAGE, paper

TABLE = "router"
SEVERAL_RUNS = True
TITLE = "The router's beta over t, run beside run"
CAPTION = (
    "One panel a method: raw, standardised, ... features. Thin: seeds (runs whose names end in -s0, -s1, ...); thick: their mean; dotted grey: "
    "the uniform mixture."
)
COLUMNS, MOST = 3, 12  # panels a row, and in all


def method_of(run: str) -> str:
    """A run's name without the seed that `gsnr grid` appends: "ahpa-s1" -> "ahpa"."""
    return re.sub(r"-s\d+$", "", run)


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: the `router` tables of the runs, one after another. Raises ValueError for tables without beta, or of too many methods."""
    beta = metrics[(metrics["target"] == "router") & (metrics["metric"] == "beta")]
    beta = beta.assign(method=beta["run"].map(method_of))
    methods = list(dict.fromkeys(beta["method"]))
    groups = list(dict.fromkeys(beta["group"]))
    if not methods:
        raise ValueError("fig_beta: the tables hold no weights beta; measure runs of a router with --probe router")
    if len(methods) > MOST:
        raise ValueError(f"fig_beta: {len(methods)} methods (runs without -s0, -s1, ...), and room for {MOST}; name fewer with --run")
    rows = -(-len(methods) // COLUMNS)
    with paper():
        figure = Figure(figsize=(PAGE, 0.3 + 2.1 * rows), layout="constrained")
        panels = grid(figure, len(methods), min(COLUMNS, len(methods)), sharey=True)
        for panel, method, letter in zip(panels, methods, ascii_lowercase, strict=False):
            here = beta[beta["method"] == method]
            for i, (group, colour) in enumerate(zip(groups, cycle(COLOURS), strict=False)):
                curves = here[here["group"] == group].pivot_table(index="t_low", columns="run", values="value")
                if curves.shape[1] > 1:
                    panel.plot(curves.index, curves, color=colour, lw=0.5, alpha=0.6)
                panel.plot(curves.index, curves.mean(axis=1), color=colour, ls=LINES[i % len(LINES)], label=rf"$\beta$ {group}")
            panel.axhline(1 / max(1, here["group"].nunique()), color=GREY, lw=0.6, ls=(0, (1, 2)), zorder=0)
            panel.set(xlim=(0, 1), ylim=WEIGHT_LIMITS)
            seeds = here["run"].nunique()
            panel.set_title(f"({letter}) {method}" + (f", {seeds} seeds" if seeds > 1 else ""), loc="left")
        for panel in panels[:: min(COLUMNS, len(methods))]:
            panel.set_ylabel("weight")
        panels[0].legend(loc="best")
    return figure
