"""Curves over bins of t, one a target, from a table of kind "cells"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.figures.style import T_LABEL
from gsnr.figures.targets import Key, Targets

GSNR = ("gsnr", "gsnr_low", "gsnr_high")


def keys_of(cells: pd.DataFrame) -> list[Key]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(zip(cells["target"], cells["control"], cells["projector"], strict=True)))


def rows_of(cells: pd.DataFrame, key: Key) -> pd.DataFrame:
    target, control, projector = key
    rows = cells[(cells["target"] == target) & (cells["control"] == control) & (cells["projector"] == projector)]
    return rows.sort_values("bin")


def one_checkpoint(cells: pd.DataFrame) -> None:
    """Raises ValueError for a table of several checkpoints, which one figure of targets cannot show, and for one without rows."""
    if cells.empty:
        raise ValueError("the table has no rows that this figure draws")
    runs = list(dict.fromkeys(zip(cells["run"], cells["checkpoint"], strict=True)))
    if len(runs) > 1:
        raise ValueError(f"the table holds {len(runs)} checkpoints ({', '.join(run for run, _ in runs)}); this figure shows one: probe it alone")


def single(cells: pd.DataFrame, group: str = "all") -> pd.DataFrame:
    """The rows of one parameter group of one checkpoint."""
    one_checkpoint(cells)
    if not (cells["group"] == group).any():
        raise ValueError(f"the table has no rows of group {group!r}, but of {', '.join(dict.fromkeys(cells['group']))}")
    return cells[cells["group"] == group]


def grid(figure: Figure, shown: int, columns: int, label: str = T_LABEL, **sharing: Any) -> list[Axes]:
    """The first `shown` axes of a grid of so many columns. The axis of t stands below the lowest of each column."""
    all_axes = list(figure.subplots(-(-shown // columns), columns, sharex=True, squeeze=False, **sharing).ravel())
    for axes in all_axes[shown:]:
        axes.set_visible(False)
    for axes in all_axes[:shown][-columns:]:
        axes.set_xlabel(label)
        axes.tick_params(labelbottom=True)
    return all_axes[:shown]


def curve(axes: Axes, rows: pd.DataFrame, columns: tuple[str, str, str], scale: float, style: dict[str, Any], shift: float) -> None:
    """Points with their intervals, open where the interval reaches 0 or there is none, and for a G-SNR where it is not above its floor; crossed out
    where a target's projector underfits. `shift` keeps bars from hiding one another."""
    width = (rows["t_high"] - rows["t_low"]).to_numpy()
    t = (rows["t_low"] + rows["t_high"]).to_numpy() / 2 + shift * width
    value, low, high = (scale * rows[c].to_numpy() for c in columns)
    errors = np.nan_to_num(np.stack([value - low, high - value]))
    axes.errorbar(t, value, errors, elinewidth=0.7, capsize=1.2, **style)
    with np.errstate(invalid="ignore"):
        unseen = ~((low > 0) | (high < 0))
    if columns == GSNR:
        unseen |= (rows["floor"].notna() & ~rows["above_floor"].astype(bool)).to_numpy()
        short = (rows["underfit"].astype(bool) & (rows["control"] == "none")).to_numpy()
        axes.plot(t[short], value[short], "x", color="black", markersize=5, markeredgewidth=0.7, zorder=4)
    open_marker: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 0.7, "markersize": 5.0 if style["marker"] in "PX" else 3.5}
    axes.plot(t[unseen], value[unseen], style["marker"], color=style["color"], zorder=3, **open_marker)


def panel(axes: Axes, cells: pd.DataFrame, keys: list[Key], columns: tuple[str, str, str], targets: Targets, scale: float = 1.0) -> int:
    """One curve a key, and a line at 0. Labels say which projector only where there are several. Returns the columns of its
    legend."""
    several = len({projector for _, _, projector in keys}) > 1
    for i, key in enumerate(keys):
        shift = 0.7 / max(4, len(keys)) * (i - (len(keys) - 1) / 2)
        label = targets.name(key if several else (key[0], key[1], "fit"))
        curve(axes, rows_of(cells, key), columns, scale, targets.style(key) | {"label": label}, shift)
    axes.axhline(0, color="black", lw=0.6, zorder=0)
    axes.set_xlim(0, 1)
    if not keys:
        axes.text(0.5, 0.5, "nothing is resolved", ha="center", va="bottom", transform=axes.transAxes)
        return 1
    bottom, top = axes.get_ylim()
    columns_of_legend = 2 if len(keys) > 2 and not several else 1
    axes.set_ylim(bottom, top + 0.1 * (1 - -len(keys) // columns_of_legend) * (top - bottom))  # room for the legend above the bars
    axes.legend(loc="upper right", ncols=columns_of_legend)
    return columns_of_legend


def floor_band(axes: Axes, cells: pd.DataFrame, keys: list[Key], scale: float, ncols: int) -> None:
    """Shades, bin by bin, what the controls of these targets reach, with their intervals; a panel's view is not stretched to show all of it."""
    rows = pd.concat([rows_of(cells, key) for key in keys])
    bottom, top = axes.get_ylim()
    name = "floor (controls)" if scale * rows["floor_low"].min() < top else "floor: above this view"
    for i, (_, of_bin) in enumerate(rows[rows["floor"].notna()].groupby("t_low")):
        ends = scale * of_bin["floor_low"].min(), scale * of_bin["floor_high"].max()
        bottom = min(bottom, ends[0])
        across = of_bin[["t_low", "t_high"]].iloc[0].to_numpy()
        axes.fill_between(across, *ends, color="0.85", lw=0, zorder=-1, label=None if i else name)
    axes.set_ylim(bottom, top)
    axes.legend(loc="upper right", ncols=ncols)
