"""Does a criterion predict what an alignment brings? Rank correlation with the benefit by forks, and the regret of its pick, for each metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures.style import COLOURS, GREY, MARKERS, PAGE, paper
from gsnr.table import METRIC_COLUMNS, NAN

TABLE = "judged"
SEVERAL_RUNS = True
TITLE = "Which criterion, measured before, predicts what an alignment brings?"
CAPTION = (
    "A line is a criterion, measured on a checkpoint without alignment; a column is the metric that forks of it were compared in. Top: Spearman's "
    "rank correlation of criterion and benefit over the rows; filled: with the negative controls, open: targets alone; bars: 95 % bootstrap "
    "intervals over rows. Above 0 the criterion ranks as the forks do, below it in reverse. Bottom: regret, what its pick brings less than the best "
    "row, or than no alignment where that is best; bars: one standard deviation over seeds. Colours are checkpoints."
)
FILLED, OPEN, REGRET, LINE = "spearman", "spearman_targets", "regret", 0.19  # inches of a line


def example() -> list[dict[str, Any]]:
    """Made-up rows: two criteria against two metrics."""
    plain: dict[str, Any] = {"string": "none", "int64": 1, "float64": NAN, "bool": False}
    base = {name: plain[dtype] for name, dtype in METRIC_COLUMNS.items()} | {"probe": TABLE, "step": 100}
    values = {FILLED: 0.4, OPEN: 0.2, REGRET: 0.01}
    return [
        base | {"target": target, "group": metric, "metric": name, "value": value, "low": value - 0.1, "high": value + 0.1}
        for target in ("gap", "gsnr")
        for metric in ("velocity_loss", "frechet")
        for name, value in values.items()
    ]


def _points(axes: Axes, rows: pd.DataFrame, criteria: list[str], shift: float, **look: Any) -> None:
    """One number of every criterion, with its bar. shift: down, in lines."""
    own = rows.set_index("target").reindex(criteria)
    value, low, high = (own[name].to_numpy(np.float64) for name in ("value", "low", "high"))
    bars = np.nan_to_num(np.stack([value - low, high - value]))
    axes.errorbar(value, np.arange(len(criteria)) + shift, xerr=np.maximum(bars, 0), ls="none", ms=3, lw=0.7, markeredgewidth=0.7, **look)


def _lines(axes: Axes, names: list[str]) -> None:
    """One for each criterion, top down, with stripes to follow it by."""
    for k in range(0, len(names), 2):
        axes.axhspan(k - 0.5, k + 0.5, color=GREY, alpha=0.12, lw=0)
    axes.axvline(0, color="black", lw=0.6, zorder=0)
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names)
    axes.tick_params(axis="y", length=0)


def draw(table: pd.DataFrame) -> Figure:
    """table: what `gsnr recommend --forks` judged, of one or more checkpoints of a run. Raises ValueError for more than there are colours."""
    labels = table.attrs.get("labels", {})
    table = table[table["metric"].isin((FILLED, OPEN, REGRET))]
    if table.empty:
        raise ValueError("fig_criteria: the table holds no criterion; `gsnr recommend --forks` judges them")
    criteria, metrics = (list(dict.fromkeys(table[name])) for name in ("target", "group"))
    checkpoints = dict(list(table.groupby(["run", "step"], sort=False)))
    if len(checkpoints) > len(COLOURS):
        raise ValueError(f"fig_criteria: {len(checkpoints)} checkpoints, and room for {len(COLOURS)}; name fewer with --run")
    names, apart = [str(labels.get(name, name)) for name in criteria], 0.6 / len(checkpoints)
    with paper():
        figure = Figure(figsize=(PAGE, 1.5 + 2 * LINE * len(criteria)), layout="constrained")
        panels = figure.subplots(2, len(metrics), sharey="row", squeeze=False)
        for column, metric in zip(panels.T, metrics, strict=True):
            for k, ((run, step), its) in enumerate(checkpoints.items()):
                here, shift = its[its["group"] == metric], apart * (k - (len(checkpoints) - 1) / 2)
                of = f"step {step}" if table["run"].nunique() == 1 else f"{run}, step {step}"
                look: dict[str, Any] = {"color": COLOURS[k], "fmt": MARKERS[k]}
                _points(column[0], here[here["metric"] == FILLED], criteria, shift - apart / 5, label=f"{of}, with controls", **look)
                open_look = look | {"markerfacecolor": "white", "label": f"{of}, targets alone"}
                _points(column[0], here[here["metric"] == OPEN], criteria, shift + apart / 5, **open_look)
                _points(column[1], here[here["metric"] == REGRET], criteria, shift, **look)
            for axes in column:
                _lines(axes, names)
            column[0].set(xlim=(-1.05, 1.05), xticks=(-1, -0.5, 0, 0.5, 1), xlabel="Spearman with the benefit", title=str(labels.get(metric, metric)))
            column[1].set(xlabel=f"regret of its pick, {labels.get(metric, metric)}")
        for axes in panels[:, 0]:
            axes.set_ylabel("criterion")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
