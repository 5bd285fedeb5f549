"""Fig. 5 of the AHPA paper, and the router's history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gsnr.figures._curves import one_checkpoint
from gsnr.figures._maps import ROW, heat
from gsnr.figures.style import COLOURS, GREY, LINES, MARKERS, PAGE, T_LABEL, paper

TABLE = "router"
TITLE = "Which layers the router chose, over t and over training (AHPA Fig. 5)"
CAPTION = (
    "The weights beta of the groups and, below them, alpha of the layers within each. Left: over t, at the checkpoint. Middle: the same over "
    "training, averaged over t. Right: beta of the deep group at three times; dotted grey: the uniform mixture that training starts from. The axis "
    "of steps is logarithmic."
)
WEIGHT_LIMITS = (-0.03, 1.03)
HISTORY_TIMES = (0.1, 0.5, 0.9)
LAST = ("alpha_mid", "alpha_deep")  # groups other than mid and deep stand above them
Row = tuple[str, str]  # metric, group or layer
SCALE: dict[str, Any] = {"cmap": "cividis", "vmin": 0, "vmax": 1}


def short(name: str) -> str:
    """ "8:down_blocks.2.resnets.0" -> "8 down 2 res 0"."""
    number, _, rest = name.partition(":")
    for long, brief in (("down_blocks", "down"), ("resnets", "res"), ("downsamplers.0", "downsample"), ("mid_block", "mid"), ("attentions", "attn")):
        rest = rest.replace(long, brief)
    return f"{number} {rest.replace('.', ' ')}".strip()


def weights_of(metrics: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Rows of beta and alpha: kind "router" at the checkpoint, "router_log" over training."""
    rows = metrics[(metrics["target"] == kind) & metrics["value"].notna()]
    return rows[(rows["metric"] == "beta") | rows["metric"].str.startswith("alpha_")]


def lines_of(rows: pd.DataFrame) -> dict[Row, str]:
    """(metric, group) -> how it is called: beta of each group, then alpha of the layers of each."""
    metrics = list(dict.fromkeys(rows["metric"]))
    order = ["beta", *(m for m in metrics if m not in ("beta", *LAST)), *LAST]
    found = [(metric, str(group)) for metric in order for group in dict.fromkeys(rows.loc[rows["metric"] == metric, "group"])]
    return {row: rf"$\beta$ {row[1]}" if row[0] == "beta" else short(row[1]) for row in found}


def over(rows: pd.DataFrame, lines: dict[Row, str], column: str) -> pd.DataFrame:
    """A row a line, over "t_low" or "step", the mean over all else."""
    table = rows.pivot_table(index=["metric", "group"], columns=column, values="value", aggfunc="mean")
    return table.reindex(pd.MultiIndex.from_tuples(lines))


def _edges(places: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Of cells around increasing places, from low to high."""
    return np.concatenate([[low], (places[1:] + places[:-1]) / 2, [high]])


def heat_over_t(axes: Axes, rows: pd.DataFrame, lines: dict[Row, str]) -> QuadMesh:
    """Lines between beta and the layers of each group."""
    table = over(rows, lines, "t_low")
    mesh = heat(axes, _edges(table.columns.to_numpy(), 0.0, 1.0), list(lines.values()), table.to_numpy(), **SCALE)
    _parts(axes, lines)
    axes.set(xlabel=T_LABEL, xticks=(0, 0.5, 1))
    return mesh


def _parts(axes: Axes, lines: dict[Row, str]) -> None:
    metrics = [metric for metric, _ in lines]
    for i in range(1, len(metrics)):
        if metrics[i] != metrics[i - 1]:
            axes.axhline(i, color="white", lw=2)


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `router` table of one checkpoint. Raises ValueError for a table without the router's weights, or of several checkpoints."""
    now, log = weights_of(metrics, "router"), weights_of(metrics, "router_log")
    one_checkpoint(now)
    lines = lines_of(now)
    with paper():
        figure = Figure(figsize=(PAGE, max(2.2, 0.75 + ROW * len(lines))), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.1))
        mesh = heat_over_t(left, now, lines)
        left.set_ylabel("group, and layer within it")
        left.set_title("(a) weight over t", loc="left")
        middle.set_title("(b) weight over training", loc="left")
        right.set_title(r"(c) $\beta$ deep over training", loc="left")
        if (log["step"] > 0).any():
            _history(middle, log, lines)
            history(right, log)
        for axes in (middle, right):
            axes.set_xlabel("training step")
            if not (log["step"] > 0).any():
                axes.text(0.5, 0.5, "no step of training\nwas logged", ha="center", va="center", transform=axes.transAxes)
        middle.set_yticks([])
        middle.set_ylabel("the same rows")
        right.set(ylim=WEIGHT_LIMITS, ylabel="weight")
        figure.colorbar(mesh, ax=middle, label="weight", pad=0.03, aspect=20)
    return figure


def _history(axes: Axes, log: pd.DataFrame, lines: dict[Row, str]) -> None:
    """The mean over t of each weight over steps."""
    table = over(log, lines, "step")
    steps = table.columns.to_numpy(float)
    heat(axes, _edges(steps, steps[0], steps[-1]), list(lines.values()), table.to_numpy(), **SCALE)
    _parts(axes, lines)
    _step_axis(axes, log)


def _step_axis(axes: Axes, log: pd.DataFrame) -> None:
    """Logarithmic, because a router may settle within tens of steps."""
    axes.set_xscale("symlog", linthresh=log.loc[log["step"] > 0, "step"].min())
    axes.set_xlim(log["step"].min(), log["step"].max())


def history(axes: Axes, log: pd.DataFrame) -> None:
    """beta of the deep group over training steps, at three times, mean over runs."""
    rows = log[(log["metric"] == "beta") & (log["group"] == "deep")]
    times = rows["t_low"].unique()
    for i, wanted in enumerate(HISTORY_TIMES if len(times) else ()):
        t = times[abs(times - wanted).argmin()]
        curve = rows[rows["t_low"] == t].groupby("step")["value"].mean()
        style: dict[str, Any] = {"color": COLOURS[i], "ls": LINES[i], "marker": MARKERS[i], "markevery": 0.1}
        axes.plot(curve.index, curve, label=f"t = {t:.2f}", **style)
    uniform = 1 / max(1, log.loc[log["metric"] == "beta", "group"].nunique())
    axes.axhline(uniform, color=GREY, lw=0.6, ls=(0, (1, 2)), zorder=0)
    _step_axis(axes, log)
    if len(times):
        axes.legend(loc="best")
