"""Easy or useful? For each VAE layer, the router's weight against the cosine that a constant vector reaches; and the target's share over t."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import COLOURS, CONTROL, MARKERS, PAGE, T_LABEL, paper
from gsnr.table import EASY

TABLE = "controls"
NOT_OFFERED = -0.06  # the height of layers that the router does not mix
APART, SEEN = 0.025, 0.02  # layers nearer to another than this have a number only from this weight on


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `controls` table of one checkpoint. Bars are 95 % jackknife intervals over images. Left: numbers are those of the encoder's
    layers (where there is room), heights the router's weight averaged over t; hollow, below the axis: layers that the router is not offered.
    Right, grey: bins in which a constant vector reaches nearly all that the projector reaches.

    Raises ValueError for a table without layers."""
    one_checkpoint(metrics)
    layers, target = metrics[metrics["bin"] < 0], metrics[metrics["group"] == "target"]
    cosine = layers[layers["metric"] == "constant_cosine"]
    weight = layers[layers["metric"] == "router_weight"].set_index("group")["value"]
    if cosine.empty:
        raise ValueError("the controls table has no layers of the VAE encoder (rows 'constant_cosine'); measure it again with --probe controls")
    with paper():
        figure = Figure(figsize=(PAGE if len(target) else PAGE / 2, 2.8), layout="constrained")
        axes = figure.subplots(1, 2 if len(target) else 1, squeeze=False)[0]
        for i, (group, rows) in enumerate(cosine.groupby("target", sort=False)):
            offered = rows["group"].isin(weight.index).any()
            heights = weight.reindex(rows["group"]).fillna(NOT_OFFERED).to_numpy()
            errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            colour = COLOURS[i % len(COLOURS)]
            look: dict[str, Any] = {"ls": "", "marker": MARKERS[i], "color": colour, "elinewidth": 0.6} | ({} if offered else {"mfc": "white"})
            axes[0].errorbar(rows["value"], heights, xerr=errors, label=group if offered else f"{group} (not routed)", **look)
        numbered = cosine[cosine["group"].isin(weight.index)].sort_values("value")
        last = -1.0
        for i, (x, name) in enumerate(zip(numbered["value"], numbered["group"], strict=True)):
            if x - last < APART and weight[name] < SEEN:
                continue
            place = (0, 5 + 7 * (i % 2))  # neighbours at two heights
            axes[0].annotate(name.split(":")[0], (x, weight[name]), textcoords="offset points", xytext=place, ha="center", fontsize=6)
            last = x
        axes[0].set(xlim=(0, 1), ylim=(2 * NOT_OFFERED, 1.15), xlabel="cosine that a constant vector reaches", ylabel="router's weight, mean over t")
        axes[0].legend(loc="best")
        axes[0].set_title("(a) layers of the VAE encoder", loc="left")
        lines = (("projector_cosine", "projector, as trained", COLOURS[0], "-"), ("constant_cosine", "best constant vector", CONTROL, ":"))
        for i, (metric, label, colour, line) in enumerate(lines if len(target) else ()):
            rows = target[target["metric"] == metric].sort_values("bin")
            errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            t = (rows["t_low"] + rows["t_high"]) / 2
            axes[1].errorbar(t, rows["value"], errors, color=colour, ls=line, marker=MARKERS[i], elinewidth=0.6, label=label)
        if len(target):
            easy = target[(target["metric"] == "constant_share") & (target["value"] >= EASY)]
            for i, (low, high) in enumerate(zip(easy["t_low"], easy["t_high"], strict=True)):
                axes[1].axvspan(low, high, color="0.9", lw=0, zorder=-1, label=None if i else f"easy: the second is {EASY:.0%} of the first or more")
            axes[1].set(xlim=(0, 1), ylim=(0, 1.03), xlabel=T_LABEL, ylabel="cosine to the target")
            axes[1].legend(loc="best")
            axes[1].set_title("(b) the checkpoint's own target", loc="left")
    return figure
