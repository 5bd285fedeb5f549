"""Fig. 5: what the router chose: beta, alpha mid and alpha deep over t at the checkpoint, and beta over training."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import COLOURS, GREY, LINES, MARKERS, PAGE, T_LABEL, paper

TABLE = "router"
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
    """metrics: a `router` table. Dotted grey: the uniform mixture that training starts from. Groups G1 and G2 have panels of their own where they
    are in the target."""
    one_checkpoint(metrics[metrics["target"] == "router"])
    metrics = metrics[metrics["value"].notna()]
    now, log = metrics[metrics["target"] == "router"], metrics[metrics["target"] == "router_log"]
    with paper():
        beta = now[now["metric"] == "beta"]
        shallow = [group for group in ("G1", "G2") if f"alpha_{group}" in set(now["metric"])]
        groups = [*shallow, "mid", "deep"]
        figure = Figure(figsize=(PAGE, 2.2 * (len(groups) // 2 + 1)), layout="constrained")
        axes = figure.subplots(len(groups) // 2 + 1, 2).ravel()
        _lines(axes[0], beta, r"(a) $\beta$ over t", 1 / max(1, beta["group"].nunique()))
        for panel, part, letter in zip(axes[1:], groups, "bcde", strict=False):
            rows = now[now["metric"] == f"alpha_{part}"]
            _lines(panel, rows, rf"({letter}) $\alpha$ {part} over t", 1 / max(1, rows["group"].nunique()))
        for panel in axes[::2]:
            panel.set_ylabel("weight")
        last = log[(log["metric"] == "beta") & (log["group"] == "deep")]
        _history(axes[len(groups) + 1], "bcdef"[len(groups)], last, 1 / max(1, beta["group"].nunique()))
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
