"""What a linear reader makes of hidden states over t, layer by layer, and what a router would choose by it."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import COLOURS, MARKERS, PAGE, T_LABEL, paper
from gsnr.figures.targets import CONTROL_LINES, CONTROLS

TABLE = "readability"
TITLE = "What a linear reader of hidden states predicts, and what a router would choose by it"
CAPTION = (
    "Curves: share of the variance between images that a ridge regression on single tokens explains, on held-out images, at the block that is "
    "aligned; numbers are those of the encoder's layers. Bars are 95 % jackknife intervals over images; dotted grey: readers of other images' "
    "features, mean over layers. Heat map: the layer that is chosen most often, block by block (a cross: the aligned block). Last, dots: what the "
    "vertex rule chooses between the parts and within each (hollow: not resolved from another); shade: the router's weights at the middle of each "
    "bin, where the checkpoint has a router. Shares, which the rule compares, are not centred: a layer's mean counts as read, in R^2 it does not."
)
Part = Figure | SubFigure
COLUMNS = 3
OTHERS = "others"  # the panel of what is alone in its group
R2_LABEL = "$R^2$ on held-out images"
R2_FLOOR = -0.1  # what is below is cut


def _panels(targets: pd.Series) -> dict[str, dict[str, str]]:
    """panel -> target -> label, in the order of the table: a panel a group of layers."""
    groups: dict[str, list[str]] = {}
    for target in targets.drop_duplicates():
        groups.setdefault(target.partition("/")[0], []).append(target)
    found = {group: {x: x.partition("/")[2].split(":")[0] for x in names} for group, names in groups.items() if len(names) > 1}
    alone = {names[0]: group for group, names in groups.items() if len(names) == 1}
    return found | ({OTHERS: alone} if alone else {})


def _middle(rows: pd.DataFrame) -> pd.Series:
    return (rows["t_low"] + rows["t_high"]) / 2


def _curves(axes: Axes, rows: pd.DataFrame, shuffled: pd.DataFrame, names: dict[str, str]) -> None:
    """rows, shuffled: of one block."""
    palette = mpl.colormaps["viridis"]
    for i, (target, label) in enumerate(names.items()):
        curve = rows[rows["target"] == target].sort_values("bin")
        t = _middle(curve) + (i - (len(names) - 1) / 2) * 0.12 * (curve["t_high"] - curve["t_low"])
        errors = [curve["value"] - curve["low"], curve["high"] - curve["value"]]
        colour = palette(0.88 * i / max(1, len(names) - 1))
        axes.errorbar(t, curve["value"], errors, color=colour, marker=MARKERS[i % len(MARKERS)], elinewidth=0.6, lw=0.9, label=label)
    level = shuffled[shuffled["target"].isin(names)].groupby("bin")[["t_low", "t_high", "value"]].mean()
    axes.plot(_middle(level), level["value"], color=CONTROLS["shuffled"][0][0], ls=CONTROL_LINES["shuffled"])
    axes.set(xlim=(0, 1), ylim=(R2_FLOOR, 1.0))
    axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.45), fontsize=6, handlelength=1.8)  # below the curves, above the teacher's


def _edges(rows: pd.DataFrame) -> np.ndarray:
    bins = rows.drop_duplicates("bin").sort_values("bin")
    return np.append(bins["t_low"], bins["t_high"].iloc[-1])


def _blocks(figure: Part, axes: Axes, rows: pd.DataFrame, tap: int) -> None:
    """rows: of one thing that is read, at every block."""
    value = rows.assign(block=rows["group"].str.split().str[1].astype(int)).pivot(index="block", columns="bin", values="value")
    blocks = np.append(value.index - 0.5, value.index[-1] + 0.5)
    mesh = axes.pcolormesh(_edges(rows), blocks, value, cmap="cividis", vmin=min(0.0, float(value.to_numpy().min())), vmax=1)
    axes.plot(0.03, tap, "x", color="white", clip_on=False)
    axes.set(ylabel="block", yticks=value.index[:: -(-len(value) // 7)])
    figure.colorbar(mesh, ax=axes, label="$R^2$", pad=0.02)


def _shares(axes: Axes, shares: pd.DataFrame) -> None:
    """What the rule compares between the parts."""
    for i, (part, rows) in enumerate(shares.groupby("group", sort=False)):
        rows = rows.sort_values("bin")
        errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        axes.errorbar(_middle(rows), rows["value"], errors, color=COLOURS[i % 7], marker=MARKERS[i % 7], elinewidth=0.6, label=part)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=T_LABEL, ylabel=r"$E\,\hat y \cdot y\;/\;E|y|^2$")
    axes.legend(loc="lower left")


def _choices(figure: Part, axes: Axes, chosen: pd.DataFrame, router: pd.DataFrame) -> None:
    """A line for each part, and for each layer of a part."""
    targets = sorted(chosen["target"].drop_duplicates(), key=lambda target: target != "beta")  # the order of the table otherwise
    lines = [(target, group) for target in targets for group in chosen.loc[chosen["target"] == target, "group"].drop_duplicates()]
    heights = {line: i + 0.5 * targets.index(line[0]) for i, line in enumerate(lines)}
    edges = _edges(chosen)
    for line, height in heights.items():
        rows = router[(router["target"] == line[0]) & (router["group"] == line[1])].sort_values("bin")
        if len(rows) == len(edges) - 1:
            mesh = axes.pcolormesh(edges, [height - 0.5, height + 0.5], rows[["value"]].T, cmap="Greys", vmin=0, vmax=1.3, edgecolors="0.9", lw=0.3)
    best = chosen[chosen["value"] == 1]
    y = np.array([heights[line] for line in zip(best["target"], best["group"], strict=True)])
    resolved = best["low"] == 1
    look: dict[str, Any] = {"marker": "o", "edgecolors": COLOURS[3], "s": 16, "linewidths": 1.0, "zorder": 3}
    for which, face, label in ((resolved, COLOURS[3], "vertex rule"), (~resolved, "white", "not resolved")):
        axes.scatter(_middle(best)[which], y[which], color=face, label=label, **look)
    part = {target: f"{target.removeprefix('alpha_')}: layer " for target in targets} | {"beta": ""}
    axes.set_yticks(list(heights.values()), [f"{part[target]}{group.split(':')[0]}" for target, group in lines])
    axes.set(xlim=(0, 1), ylim=(max(heights.values()) + 0.7, -0.7), xlabel=T_LABEL, ylabel="part, or layer of it")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2, fontsize=6, handletextpad=0.1, columnspacing=0.8)
    if not router.empty:
        figure.colorbar(mesh, ax=axes, label="router's weight", pad=0.02, boundaries=np.linspace(0, 1, 100), ticks=(0, 0.5, 1))


def _most_chosen(chosen: pd.DataFrame, true: pd.DataFrame) -> str:
    """The target that the rule chooses in most bins; without choices the one with the largest mean R^2."""
    best = chosen[chosen["value"] == 1]
    part = best.loc[best["target"] == "beta", "group"].mode()
    if part.empty:
        return str(true.groupby("target", sort=False)["value"].mean().idxmax())
    layer = best.loc[best["target"] == f"alpha_{part[0]}", "group"].mode()[0]
    return next(target for target in true["target"] if target.partition("/")[2] == layer)


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `readability` table of one checkpoint. Raises ValueError for one of several, or without R^2."""
    one_checkpoint(metrics)
    r2, taps = metrics[metrics["metric"] == "readable_r2"], metrics[metrics["metric"] == "tap"]
    true, shuffled = r2[r2["control"] == "none"], r2[r2["control"] == "shuffled"]
    if true.empty or taps.empty:
        raise ValueError("fig_readability: the table has no rows 'readable_r2' and 'tap'; measure it again with --probe readability")
    tap = int(taps["value"].iloc[0])
    here, there = (rows[rows["group"] == f"block {tap}"] for rows in (true, shuffled))
    chosen, router = (metrics[metrics["metric"] == metric] for metric in ("predicted_weight", "router_weight"))
    panels = _panels(true["target"])
    lines = len(chosen.drop_duplicates(["target", "group"]))
    heights = [1.7 * -(-(len(panels) + 1) // COLUMNS)] + ([0.7 + 0.16 * lines] if lines else [])
    with paper():
        figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        all_axes = parts[0].subplots(-(-(len(panels) + 1) // COLUMNS), COLUMNS, squeeze=False).ravel()
        for i, (panel, names) in enumerate(panels.items()):
            _curves(all_axes[i], here, there, names)
            all_axes[i].set_title(f"({ascii_lowercase[i]}) {panel if panel == OTHERS else f'layers of {panel}'}", loc="left")
            all_axes[i].set(xlabel=T_LABEL, ylabel=R2_LABEL if i % COLUMNS == 0 else "$R^2$")
        last, most = len(panels), _most_chosen(chosen, here)
        _blocks(parts[0], all_axes[last], true[true["target"] == most], tap)
        all_axes[last].set_title(f"({ascii_lowercase[last]}) {most.split(':')[0].replace('/', ', layer ')}, by block", loc="left")
        all_axes[last].set_xlabel(T_LABEL)
        for axes in all_axes[last + 1 :]:
            axes.set_visible(False)
        if lines:
            left, right = parts[1].subplots(1, 2, width_ratios=(1, 1.6))
            _shares(left, metrics[(metrics["metric"] == "readable_share") & (metrics["target"] == "beta")])
            left.set_title(f"({ascii_lowercase[last + 1]}) share, best layer of each part", loc="left")
            _choices(parts[1], right, chosen, router)
            right.set_title(f"({ascii_lowercase[last + 2]}) chosen at block {tap}", loc="left")
    return figure
