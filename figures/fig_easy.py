"""Does the router choose the useful layer or the easy one?"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures._curves import legend_below, one_checkpoint
from gsnr.figures.style import PAGE, T_LABEL, paper
from gsnr.figures.targets import CONTROL_LINES, CONTROLS, Targets, looks
from gsnr.table import EASY

TABLE = "controls"
TITLE = "Useful or just easy? What a constant vector already reaches, layer by layer"
CAPTION = (
    "Left, in colour: the cosine to each layer of the VAE's encoder that the best constant vector reaches, with its 95 % jackknife interval over "
    "images; pale: layers that the router is not offered. Black: the router's weight of the layer, averaged over t. Right: the checkpoint's own "
    "target; where a constant vector reaches nearly all that the projector reaches, the bin is shaded grey."
)
OF_GROUP = {"G1": "uniform_G1", "G2": "uniform_G2", "G3": "uniform_mid", "G4": "uniform_deep", "teacher": "repa"}  # the target that looks like it
SEEN = 0.01  # a weight below it has no bar to be seen, and gets a dash
PALE = 0.35  # opacity of layers that the router does not mix


def _short(layer: str) -> str:
    """ "8:down_blocks.2.resnets.0" -> "8"; another name as it is."""
    number, _, rest = layer.partition(":")
    return number if rest else layer


def _places(cosine: pd.DataFrame) -> dict[str, int]:
    """layer -> where it stands; one that is alone in its group, with a long name, has room on its left."""
    groups = cosine["target"].tolist()
    room = [int(i > 0 and groups.count(group) == 1 and len(group) > 3) for i, group in enumerate(groups)]
    return {layer: i + sum(room[: i + 1]) for i, layer in enumerate(cosine["group"])}


def _layers(axes: Axes, cosine: pd.DataFrame, weight: pd.Series) -> None:
    """cosine: a row a layer; weight: layer -> what the router gives it, empty where there is no router."""
    look_of = looks(OF_GROUP.get(group, group) for group in cosine["target"])
    at = _places(cosine)
    width = 0.42 if len(weight) else 0.8
    names = []
    for group, rows in cosine.groupby("target", sort=False):
        x = rows["group"].map(at)
        offered = rows["group"].isin(weight.index).any() or not len(weight)
        errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        colour, _ = look_of[OF_GROUP.get(str(group), str(group))]
        pale: dict[str, Any] = {"color": colour, "alpha": 1.0 if offered else PALE, "error_kw": {"elinewidth": 0.6, "capsize": 1.2}}
        axes.bar(x - (0.21 if len(weight) else 0), rows["value"], width, yerr=errors, label=group if offered else f"{group} (not offered)", **pale)
        names += [str(group) if len(rows) == 1 else _short(str(layer)) for layer in rows["group"]]
    if len(weight):
        shares = weight.reindex(cosine["group"]).to_numpy()
        axes.bar([i + 0.21 for i in at.values()], shares, width, color="black", label="weight that the router gave it")
        for i, share in zip(at.values(), shares, strict=True):
            if share < SEEN:
                axes.plot(i + 0.21, 0.012, "_", color="black", markersize=4)
    axes.set(ylim=(0, 1.03), xlabel="layer of the VAE's encoder", ylabel="cosine a constant reaches; weight")
    axes.set_xticks(list(at.values()), names)
    legend_below(axes, 3)
    axes.set_title("(a) layers of the encoder", loc="left")


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
        axes.axvspan(low, high, color="0.9", lw=0, zorder=-1, label=None if i else f"easy: a constant reaches {100 * EASY:.0f} % of it")
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=T_LABEL, ylabel="cosine to the target")
    legend_below(axes, 1)
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
        figure = Figure(figsize=(PAGE if len(target) else 0.6 * PAGE, 3.0), layout="constrained")
        axes = figure.subplots(1, 2 if len(target) else 1, squeeze=False, width_ratios=(1.4, 1) if len(target) else None)[0]
        _layers(axes[0], cosine, weight)
        if len(target):
            _target(axes[1], target)
    return figure
