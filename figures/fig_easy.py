"""Does the router choose the useful layer or the easy one?"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import PAGE, T_LABEL, paper
from gsnr.figures.targets import CONTROL_LINES, CONTROLS, Targets, looks
from gsnr.table import EASY

TABLE = "controls"
TITLE = "Easy or useful? What a constant vector reaches of each layer and of the target"
CAPTION = (
    "Bars are 95 % jackknife intervals over images. Left: numbers are those of the encoder's layers (where there is room), heights the router's "
    "weight averaged over t; hollow, below the axis: layers that the router is not offered. Right, grey: bins in which a constant vector reaches "
    "nearly all that the projector reaches."
)
OF_GROUP = {"G1": "uniform_G1", "G2": "uniform_G2", "G3": "uniform_mid", "G4": "uniform_deep", "teacher": "repa"}  # the target that looks like it
NOT_OFFERED = -0.06  # the height of layers that the router does not mix
APART, SEEN = 0.025, 0.02  # layers nearer to another than this have a number only from this weight on


def _layers(axes: Axes, cosine: pd.DataFrame, weight: pd.Series) -> None:
    """cosine: a row a layer; weight: layer -> what the router gives it."""
    look_of = looks(OF_GROUP.get(group, group) for group in cosine["target"])
    for group, rows in cosine.groupby("target", sort=False):
        offered = rows["group"].isin(weight.index).any()
        heights = weight.reindex(rows["group"]).fillna(NOT_OFFERED).to_numpy()
        errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        colour, marker = look_of[OF_GROUP.get(str(group), str(group))]
        look: dict[str, Any] = {"ls": "", "marker": marker, "color": colour, "elinewidth": 0.6} | ({} if offered else {"mfc": "white"})
        axes.errorbar(rows["value"], heights, xerr=errors, label=group if offered else f"{group} (not routed)", **look)
    numbered = cosine[cosine["group"].isin(weight.index)].sort_values("value")
    last = -1.0
    for i, (x, name) in enumerate(zip(numbered["value"], numbered["group"], strict=True)):
        if x - last < APART and weight[name] < SEEN:
            continue
        place = (0, 5 + 7 * (i % 2))  # neighbours at two heights
        axes.annotate(name.split(":")[0], (x, weight[name]), textcoords="offset points", xytext=place, ha="center", fontsize=6)
        last = x
    axes.set(xlim=(0, 1), ylim=(2 * NOT_OFFERED, 1.15), xlabel="cosine that a constant vector reaches", ylabel="router's weight, mean over t")
    axes.legend(loc="best")
    axes.set_title("(a) layers of the VAE encoder", loc="left")


def _target(axes: Axes, target: pd.DataFrame) -> None:
    """target: rows of the checkpoint's own target, a bin and metric each."""
    colour, marker = CONTROLS["constant"][0]
    constant = {"color": colour, "marker": marker, "ls": CONTROL_LINES["constant"]}
    own = Targets(target).style((target["target"].iloc[0], "none", "ckpt"))
    for metric, label, style in (("projector_cosine", "projector, as trained", own), ("constant_cosine", "best constant vector", constant)):
        rows = target[target["metric"] == metric].sort_values("bin")
        errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        t = (rows["t_low"] + rows["t_high"]) / 2
        axes.errorbar(t, rows["value"], errors, elinewidth=0.6, label=label, **style)
    easy = target[(target["metric"] == "constant_share") & (target["value"] >= EASY)]
    for i, (low, high) in enumerate(zip(easy["t_low"], easy["t_high"], strict=True)):
        axes.axvspan(low, high, color="0.9", lw=0, zorder=-1, label=None if i else f"easy: constant reaches {EASY:.0%} or more")
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=T_LABEL, ylabel="cosine to the target")
    axes.legend(loc="best")
    axes.set_title("(b) the checkpoint's own target", loc="left")


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `controls` table of one checkpoint. Raises ValueError for one of several, or without layers."""
    one_checkpoint(metrics)
    layers, target = metrics[metrics["bin"] < 0], metrics[metrics["group"] == "target"]
    cosine = layers[layers["metric"] == "constant_cosine"]
    weight = layers[layers["metric"] == "router_weight"].set_index("group")["value"]
    if cosine.empty:
        raise ValueError("the controls table has no layers of the VAE encoder (rows 'constant_cosine'); measure it again with --probe controls")
    with paper():
        figure = Figure(figsize=(PAGE if len(target) else PAGE / 2, 2.8), layout="constrained")
        axes = figure.subplots(1, 2 if len(target) else 1, squeeze=False)[0]
        _layers(axes[0], cosine, weight)
        if len(target):
            _target(axes[1], target)
    return figure
