"""Two gradients over training: their cosine, and the balance rho, of runs with a target, with its shuffled control and with none."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures.style import COLOURS, GREY, LINES, MARKERS, PAGE, paper
from gsnr.table import METRIC_COLUMNS, NAN

TABLE = "recommend"
SEVERAL_RUNS = True
TITLE = "Is the conflict late in training the target's doing? Alignment and denoising gradients over the steps"
CAPTION = (
    "A row is a target, whose projector is fitted alike on every checkpoint; a colour is what runs were trained with. Markers: one seed each, with "
    "the 95 % interval over images; lines: the median of the seeds; open markers: not told from 0; triangles at an edge: values beyond it, of "
    "gradients that are hardly resolved. Left: cosine of the mean alignment and denoising gradients. Right: balance rho; 0 is independent, -1 "
    "(dotted) the equilibrium that any target comes to, useful or not. Runs whose curves lie on one another differ in nothing that these numbers "
    "show."
)
MEASURES = {"cosine": "cosine to the denoising gradient", "balance": r"balance $\rho$"}
SEED = re.compile(r"-s\d+$")
MOST = len(COLOURS)  # rows of training that can be told apart
REACH = {"cosine": 1.0, "balance": 2.0}  # of a panel, up and down


def example() -> list[dict[str, Any]]:
    """Made-up rows of one checkpoint: a target under both measures."""
    plain: dict[str, Any] = {"string": "none", "int64": 1, "float64": NAN, "bool": False}
    base = {name: plain[dtype] for name, dtype in METRIC_COLUMNS.items()} | {"probe": TABLE, "group": "block 2", "step": 100}
    values = {"cosine": -0.1, "balance": -0.4}
    return [base | {"target": "repa@2", "metric": name, "value": x, "low": x - 0.2, "high": x + 0.2} for name, x in values.items()]


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """With columns method, what a run is called less its seed, and place, of a seed among those of its method."""
    method = rows["run"].map(lambda run: SEED.sub("", str(run)))
    place = rows.groupby(method)["run"].transform(lambda runs: pd.factorize(runs)[0])
    return rows.assign(method=method, place=place)


def _panel(axes: Axes, rows: pd.DataFrame, methods: list[str], reach: float) -> None:
    """One measure of one target. reach: of the axis, up and down."""
    gap = np.diff(np.unique(rows["step"])).min() if rows["step"].nunique() > 1 else 1
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method].dropna(subset="value")
        look: dict[str, Any] = {"color": COLOURS[i]}
        x = own["step"] + gap * (0.5 * (i + 0.5) / len(methods) - 0.25 + 0.06 * own["place"] / max(1, own["place"].max()))
        value, low, high = (own[name].to_numpy(np.float64) for name in ("value", "low", "high"))
        known = np.isfinite(low)
        bars = np.stack([value - low, high - value])[:, known]
        axes.errorbar(x[known], value[known], yerr=np.maximum(bars, 0), fmt="none", lw=0.5, alpha=0.7, **look)
        unseen, beyond = ~known | ((low <= 0) & (high >= 0)), np.abs(value) > reach
        for of, fill in ((~unseen & ~beyond, COLOURS[i]), (unseen & ~beyond, "white")):
            axes.plot(x[of], value[of], MARKERS[i], ms=2.6, markerfacecolor=fill, markeredgewidth=0.5, **look)
        for sign, arrow in ((1, "^"), (-1, "v")):
            of = beyond & (np.sign(value) == sign)
            axes.plot(x[of], np.full(of.sum(), 0.96 * sign * reach), arrow, ms=2.4, alpha=0.6, markeredgewidth=0, **look)
        middle = own.groupby("step")["value"].median().clip(-reach, reach)
        axes.plot(middle.index, middle, ls=LINES[i % len(LINES)], lw=1.1, label=method, zorder=3, **look)
    axes.axhline(0, color="black", lw=0.6, zorder=0)
    axes.set_ylim(-reach, reach)


def draw(table: pd.DataFrame) -> Figure:
    """table: those of `gsnr recommend` of several checkpoints, one after another. Raises ValueError for tables without cosine and balance."""
    rows = _named(table[table["metric"].isin(MEASURES)])
    if rows.empty:
        raise ValueError("fig_balance: the tables hold neither cosine nor balance; make them with `gsnr recommend --criteria cosine,balance`")
    methods, targets = list(dict.fromkeys(rows["method"])), list(dict.fromkeys(rows["target"]))
    if len(methods) > MOST:
        raise ValueError(f"fig_balance: runs of {len(methods)} kinds, and room for {MOST}; name fewer with --run")
    with paper():
        figure = Figure(figsize=(PAGE, 0.7 + 1.9 * len(targets)), layout="constrained")
        all_axes = figure.subplots(len(targets), 2, sharex=True, squeeze=False)
        for line, target in zip(all_axes, targets, strict=True):
            for axes, (measure, label) in zip(line, MEASURES.items(), strict=True):
                own = rows[(rows["target"] == target) & (rows["metric"] == measure)]
                _panel(axes, own, methods, REACH[measure])
                axes.set_ylabel(label)
            line[0].set_title(f"target {target}", loc="left")
            line[1].axhline(-1, color=GREY, lw=0.8, ls=(0, (1, 2)), zorder=0)
        for axes in all_axes[-1]:
            axes.set_xlabel("step of training")
        figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(methods)), title="trained with")
    return figure
