"""Fig. 2: B x G-SNR of the alignment gradient over t, per target, with 95 % intervals, the control and the noise floor at 0."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS, COLUMN, CONTROL, MARKERS, T_LABEL, paper
from gsnr.table import target_name

TABLE = "alignment"


def _curve(axes: Axes, rows: pd.DataFrame, label: str, colour: str, marker: str, line: str, shift: float) -> None:
    """One target: points with intervals, filled where above detection, open where not; `shift` keeps bars from hiding one another."""
    rows = rows.sort_values("bin")
    batch_ref = rows["batch_ref"].iloc[0]
    width = (rows["t_high"] - rows["t_low"]).to_numpy()
    t = (rows["t_low"] + rows["t_high"]).to_numpy() / 2 + shift * width
    value, low, high = (batch_ref * rows[c].to_numpy() for c in ("gsnr", "gsnr_low", "gsnr_high"))
    errors = np.stack([value - low, high - value])
    axes.errorbar(t, value, errors, color=colour, ls=line, marker=marker, elinewidth=0.7, capsize=1.2, label=label)
    unseen = rows["below_detection"].to_numpy()
    axes.plot(t[unseen], value[unseen], marker, color=colour, markerfacecolor="white", zorder=3)


def _panel(axes: Axes, cells: pd.DataFrame, keys: list[tuple[str, str, str]]) -> None:
    for i, key in enumerate(keys):
        target, control, projector = key
        rows = cells[(cells["target"] == target) & (cells["control"] == control) & (cells["projector"] == projector)]
        colour = CONTROL if control != "none" else COLOURS[i % len(COLOURS)]
        shift = 0.14 * (i - (len(keys) - 1) / 2)
        _curve(axes, rows, target_name(*key), colour, MARKERS[i % len(MARKERS)], ":" if control != "none" else "-", shift)
    axes.axhline(0, color="black", lw=0.6, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylabel(f"{int(cells['batch_ref'].iloc[0])} $\\times$ G-SNR")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.3 * (top - bottom))  # room for the legend above the bars
    axes.legend(loc="upper right", ncols=2 if len(keys) > 2 else 1)


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table. Above: every target with a projector fitted the same way, and the control; below (where there is one):
    the checkpoint's own projector beside the fitted one. Open markers: the interval reaches 0."""
    cells = cells[cells["group"] == "all"]
    keys = list(dict.fromkeys(zip(cells["target"], cells["control"], cells["projector"], strict=True)))
    fitted, own = [k for k in keys if k[2] == "fit"], [k for k in keys if k[2] == "ckpt"]
    with paper():
        figure = Figure(figsize=(COLUMN, 4.2 if own else 2.3), layout="constrained")
        all_axes = figure.subplots(2 if own else 1, 1, sharex=True, squeeze=False)
        top = all_axes[0, 0]
        _panel(top, cells, fitted)
        top.set_title("(a) projectors fitted alike, held-out images", loc="left")
        if own:
            same = [k for k in fitted if k[:2] == own[0][:2]]
            _panel(all_axes[1, 0], cells, [*same, *own])
            all_axes[1, 0].set_title("(b) the checkpoint's own projector", loc="left")
        all_axes[-1, 0].set_xlabel(T_LABEL)
    return figure
