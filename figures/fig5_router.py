"""Fig. 5 of the AHPA paper, and the router's history."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import COLOURS, GREY, LINES, MARKERS, PAGE, T_LABEL, paper

TABLE = "router"
TITLE = "What the router chose, over t and over training (AHPA Fig. 5)"
CAPTION = (
    "The weights beta of the groups and alpha of the layers within each, over t at the checkpoint, and beta over training. Dotted grey: the "
    "uniform mixture that training starts from. The axis of steps is logarithmic."
)
WEIGHT_LIMITS = (-0.03, 1.03)
HISTORY_TIMES = (0.1, 0.5, 0.9)
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 6}  # a legend, for curves run along the edges


def _lines(axes: Axes, rows: pd.DataFrame, title: str, uniform: float) -> None:
    for i, (name, curve) in enumerate(rows.groupby("group", sort=False)):
        curve = curve.sort_values("t_low")
        axes.plot(curve["t_low"], curve["value"], color=COLOURS[i % len(COLOURS)], ls=LINES[i % len(LINES)], label=_short(str(name)))
    axes.set(xlim=(0, 1), ylim=WEIGHT_LIMITS, xlabel=T_LABEL)
    axes.set_title(title, loc="left")
    if rows.empty:
        axes.text(0.5, 0.5, "not in this target", ha="center", va="center", transform=axes.transAxes)
        return
    axes.axhline(uniform, color=GREY, lw=0.6, ls=(0, (1, 2)), zorder=0)
    axes.legend(**BESIDE)


def _short(name: str) -> str:
    """ "8:down_blocks.2.resnets.0" -> "8 down 2 res 0"."""
    number, _, rest = name.partition(":")
    for long, short in (("down_blocks", "down"), ("resnets", "res"), ("downsamplers.0", "downsample"), ("mid_block", "mid"), ("attentions", "attn")):
        rest = rest.replace(long, short)
    return f"{number} {rest.replace('.', ' ')}".strip()


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `router` table of one checkpoint. Groups other than mid and deep have panels of their own where they are in the target.

    Raises ValueError for a table without the router's weights, or of several checkpoints."""
    metrics = metrics[metrics["value"].notna()]
    now, log = metrics[metrics["target"] == "router"], metrics[metrics["target"] == "router_log"]
    now = now[(now["metric"] == "beta") | now["metric"].str.startswith("alpha_")]
    one_checkpoint(now)
    with paper():
        beta = now[now["metric"] == "beta"]
        others = [metric.removeprefix("alpha_") for metric in dict.fromkeys(now["metric"]) if metric not in ("beta", "alpha_mid", "alpha_deep")]
        groups = [*others, "mid", "deep"]
        rows = -(-(len(groups) + 2) // 2)
        figure = Figure(figsize=(PAGE, 2.2 * rows), layout="constrained")
        axes = figure.subplots(rows, 2, sharey=True).ravel()
        _lines(axes[0], beta, r"(a) $\beta$ over t", 1 / max(1, beta["group"].nunique()))
        for panel, part, letter in zip(axes[1:], groups, ascii_lowercase[1:], strict=False):
            layers = now[now["metric"] == f"alpha_{part}"]
            _lines(panel, layers, rf"({letter}) $\alpha$ {part} over t", 1 / max(1, layers["group"].nunique()))
        for panel in axes[::2]:
            panel.set_ylabel("weight")
        last = log[(log["metric"] == "beta") & (log["group"] == "deep")]
        _history(axes[len(groups) + 1], ascii_lowercase[len(groups) + 1], last, 1 / max(1, beta["group"].nunique()))
        for panel in axes[len(groups) + 2 :]:
            panel.set_visible(False)
    return figure


def _history(axes: Axes, letter: str, rows: pd.DataFrame, uniform: float) -> None:
    """beta deep over training steps, at three times; the step axis is logarithmic because a router may settle within tens of steps."""
    axes.set_title(rf"({letter}) $\beta$ deep over training", loc="left")
    axes.set(xlabel="training step", ylim=WEIGHT_LIMITS)
    if not (rows["step"] > 0).any():
        axes.text(0.5, 0.5, "no step of training was logged", ha="center", va="center", transform=axes.transAxes)
        return
    times = rows["t_low"].unique()
    for i, wanted in enumerate(HISTORY_TIMES):
        t = times[abs(times - wanted).argmin()]
        curve = rows[rows["t_low"] == t].sort_values("step")
        axes.plot(curve["step"], curve["value"], color=COLOURS[i], ls=LINES[i], marker=MARKERS[i], markevery=0.1, label=f"t = {t:.2f}")
    axes.axhline(uniform, color=GREY, lw=0.6, ls=(0, (1, 2)), zorder=0)
    first = rows.loc[rows["step"] > 0, "step"].min()
    axes.set_xscale("symlog", linthresh=first)
    axes.set_xlim(0, rows["step"].max())
    axes.legend(**BESIDE)
