"""What a linear reader makes of hidden states over t, layer by layer, and what a router would choose by it."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    "bin, where the checkpoint has a router."
)
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
    axes.legend(loc="upper right", ncols=2, fontsize=6, handlelength=1.8, columnspacing=1.0)


def _edges(rows: pd.DataFrame) -> np.ndarray:
    bins = rows.drop_duplicates("bin").sort_values("bin")
    return np.append(bins["t_low"], bins["t_high"].iloc[-1])


def _blocks(figure: Figure, axes: Axes, rows: pd.DataFrame, tap: int) -> None:
    """rows: of one thing that is read, at every block."""
    value = rows.assign(block=rows["group"].str.split().str[1].astype(int)).pivot(index="block", columns="bin", values="value")
    blocks = np.append(value.index - 0.5, value.index[-1] + 0.5)
    mesh = axes.pcolormesh(_edges(rows), blocks, value, cmap="cividis", vmin=min(0.0, float(value.to_numpy().min())), vmax=1)
    axes.plot(0.03, tap, "x", color="white", clip_on=False)
    axes.set(ylabel="block", yticks=value.index[:: -(-len(value) // 7)])
    figure.colorbar(mesh, ax=axes, label="$R^2$", pad=0.02)


def _choices(figure: Figure, axes: Axes, chosen: pd.DataFrame, router: pd.DataFrame) -> None:
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
    for which, face, label in ((resolved, COLOURS[3], "vertex rule"), (~resolved, "white", "vertex rule, not resolved")):
        axes.scatter(_middle(best)[which], y[which], color=face, label=label, **look)
    part = {target: f"{target.removeprefix('alpha_')}: layer " for target in targets} | {"beta": ""}
    axes.set_yticks(list(heights.values()), [f"{part[target]}{group.split(':')[0]}" for target, group in lines])
    axes.set(xlim=(0, 1), ylim=(max(heights.values()) + 0.7, -0.7), xlabel=T_LABEL, ylabel="part, or layer of a part")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 0.2))
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
    rows = -(-(len(panels) + 1) // COLUMNS)
    lines = len(chosen.drop_duplicates(["target", "group"]))
    heights = [1.7] * rows + ([0.6 + 0.16 * lines] if lines else [])
    with paper():
        figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
        cells = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
        for i, (panel, names) in enumerate(panels.items()):
            axes = figure.add_subplot(cells[i // COLUMNS, i % COLUMNS])
            _curves(axes, here, there, names)
            axes.set_title(f"({ascii_lowercase[i]}) {panel if panel == OTHERS else f'layers of {panel}'}", loc="left")
            axes.set(xlabel=T_LABEL, ylabel=R2_LABEL if i % COLUMNS == 0 else "$R^2$")
        most = _most_chosen(chosen, here)
        axes = figure.add_subplot(cells[len(panels) // COLUMNS, len(panels) % COLUMNS])
        _blocks(figure, axes, true[true["target"] == most], tap)
        axes.set_title(f"({ascii_lowercase[len(panels)]}) {most.split(':')[0].replace('/', ', layer ')}, by block", loc="left")
        axes.set_xlabel(T_LABEL)
        if lines:
            axes = figure.add_subplot(cells[-1, :])
            _choices(figure, axes, chosen, router)
            axes.set_title(f"({ascii_lowercase[len(panels) + 1]}) chosen at block {tap}", loc="left")
    return figure
