"""What hidden states know over t, one curve a block."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import MARKERS, PAGE, T_LABEL, paper
from gsnr.figures.targets import CONTROL_LINES, CONTROLS

TABLE = "representation"
TITLE = "What hidden states know: a linear probe's accuracy and CKNNA to the image teacher, over t"
CAPTION = (
    "One curve a block, the model is told no class. Bars are 95 % intervals (Wilson; jackknife over sixteenths of the images). Grey: what knowing "
    "nothing gives, which is always guessing the most frequent class, and the teacher's features of other images."
)
TITLES = {"linear_probe_accuracy": "linear probe, held-out accuracy", "cknna": "CKNNA to the teacher (k = 10)"}
CHANCE = {"linear_probe_accuracy": ("constant", "always the most frequent class"), "cknna": ("shuffled", "teacher of other images, mean over blocks")}
MOST = 8  # curves in a panel; more blocks are thinned evenly, the last kept


def _number(group: str) -> int:
    return int(group.split()[1])


def _panel(axes: Axes, rows: pd.DataFrame, chance: pd.DataFrame, metric: str) -> None:
    blocks = sorted(rows["group"].unique(), key=_number)
    step = -(-len(blocks) // MOST)
    shown = blocks[::-1][::step][::-1]
    palette = mpl.colormaps["viridis"]
    for i, block in enumerate(shown):
        curve = rows[rows["group"] == block].sort_values("bin")
        t = (curve["t_low"] + curve["t_high"]) / 2 + (i - (len(shown) - 1) / 2) * 0.06 * (curve["t_high"] - curve["t_low"])
        errors = [curve["value"] - curve["low"], curve["high"] - curve["value"]]
        colour = palette(0.92 * i / max(1, len(shown) - 1))
        axes.errorbar(t, curve["value"], errors, color=colour, marker=MARKERS[i % len(MARKERS)], elinewidth=0.6, label=block)
    if not chance.empty:
        control, of_what = CHANCE[metric]
        grey, _ = CONTROLS[control][0]
        level = chance.groupby("bin")[["t_low", "t_high", "value"]].mean()
        axes.plot((level["t_low"] + level["t_high"]) / 2, level["value"], color=grey, ls=CONTROL_LINES[control], label=of_what)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.12 * (high - low))  # room for the legend
        axes.legend(handles=axes.get_lines()[-1:], loc="upper right")
    axes.set(xlim=(0, 1), xlabel=T_LABEL, ylabel=TITLES[metric])


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `representation` table of one checkpoint. Raises ValueError for one of several, or without either metric."""
    one_checkpoint(metrics)
    metrics = metrics[metrics["group"].str.fullmatch(r"block \d+")]
    true, controls = metrics[metrics["control"] == "none"], metrics[metrics["control"] != "none"]
    panels = [(name, rows) for name in TITLES if not (rows := true[true["metric"] == name]).empty]
    if not panels:
        raise ValueError(f"fig_representation: the table has no rows of {' or '.join(TITLES)}")
    with paper():
        figure = Figure(figsize=(PAGE * len(panels) / 2, 2.8), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, letter, (name, rows) in zip(all_axes, "ab", panels, strict=False):
            _panel(axes, rows, controls[controls["metric"] == name], name)
            axes.set_title(f"({letter})", loc="left")
        handles, labels = all_axes[0].get_legend_handles_labels()
        blocks = [i for i, label in enumerate(labels) if label.startswith("block ")]
        figure.legend([handles[i] for i in blocks], [labels[i] for i in blocks], loc="outside upper center", ncols=len(blocks))
    return figure
