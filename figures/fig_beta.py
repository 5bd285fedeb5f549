"""Beta over t of several runs side by side: one panel a method (raw, standardised, ... features), one line a group and seed."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures.fig5_router import WEIGHT_LIMITS
from gsnr.figures.style import COLOURS, GREY, LINES, PAGE, T_LABEL, paper

TABLE = "router"
SEVERAL_RUNS = True
COLUMNS = 3
LETTERS = "abcdefghijkl"  # of the panels


def method_of(run: str) -> str:
    """A run's name without the seed that `gsnr grid` appends: "ahpa-s1" -> "ahpa"."""
    return re.sub(r"-s\d+$", "", run)


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: the `router` tables of the runs, one after another. Thin: seeds; thick: their mean; dotted grey: the uniform mixture."""
    beta = metrics[(metrics["target"] == "router") & (metrics["metric"] == "beta")]
    beta = beta.assign(method=beta["run"].map(method_of))
    methods = list(dict.fromkeys(beta["method"]))
    groups = list(dict.fromkeys(beta["group"]))
    if len(methods) > len(LETTERS):
        raise ValueError(f"fig_beta: {len(methods)} methods (runs without -s0, -s1, ...), and room for {len(LETTERS)}; name fewer with --run")
    rows = -(-len(methods) // COLUMNS)
    with paper():
        figure = Figure(figsize=(PAGE, 0.3 + 2.1 * rows), layout="constrained")
        panels = figure.subplots(rows, min(COLUMNS, len(methods)), squeeze=False, sharey=True, sharex=True).ravel()
        for panel in panels[len(methods) :]:
            panel.set_visible(False)
        for panel, method, letter in zip(panels, methods, LETTERS, strict=False):
            here = beta[beta["method"] == method]
            for i, group in enumerate(groups):
                curves = here[here["group"] == group].pivot_table(index="t_low", columns="run", values="value")
                if curves.shape[1] > 1:
                    panel.plot(curves.index, curves, color=COLOURS[i], lw=0.5, alpha=0.6)
                panel.plot(curves.index, curves.mean(axis=1), color=COLOURS[i], ls=LINES[i % len(LINES)], label=rf"$\beta$ {group}")
            panel.axhline(1 / max(1, here["group"].nunique()), color=GREY, lw=0.6, ls=(0, (1, 2)), zorder=0)
            panel.set(xlim=(0, 1), ylim=WEIGHT_LIMITS, xlabel=T_LABEL)
            seeds = here["run"].nunique()
            panel.set_title(f"({letter}) {method}" + (f", {seeds} seeds" if seeds > 1 else ""), loc="left")
        panels[0].set_ylabel("weight")
        panels[0].legend(loc="best")
    return figure
