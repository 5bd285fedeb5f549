"""Curves over bins of t, one a target, from a table of kind "cells"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gsnr.figures.style import COLOURS, T_LABEL
from gsnr.figures.targets import Key, Targets

GSNR = ("gsnr", "gsnr_low", "gsnr_high")
ABOVE_FLOOR = ("above", "above_low", "above_high")  # the same less the floor: `less_floor`
LINEAR = 10  # up to here the axis of a G-SNR is linear, logarithmic beyond
FLOOR_LOOK: dict[str, Any] = {"facecolor": "0.82", "edgecolor": "white", "hatch": r"\\\\", "lw": 0}
UNITS = f"G-SNR is a ratio of squared norms, without unit; the axis is linear up to {LINEAR}, then logarithmic"
OPEN: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 0.8}
CROSS: dict[str, Any] = {"marker": "x", "ls": "", "color": "black", "markersize": 5, "markeredgewidth": 0.7}


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


def less_floor(cells: pd.DataFrame) -> pd.DataFrame:
    """With columns ABOVE_FLOOR: G-SNR and the ends of its interval, less the floor."""
    return cells.assign(**{name: cells[column] - cells["floor"] for name, column in zip(ABOVE_FLOOR, GSNR, strict=True)})


def grid(figure: Figure, shown: int, columns: int, label: str = T_LABEL, **sharing: Any) -> list[Axes]:
    """The first `shown` axes of a grid of so many columns. The axis of t stands below the lowest of each column."""
    all_axes = list(figure.subplots(-(-shown // columns), columns, sharex=True, squeeze=False, **sharing).ravel())
    for axes in all_axes[shown:]:
        axes.set_visible(False)
    for axes in all_axes[:shown][-columns:]:
        axes.set_xlabel(label)
        axes.tick_params(labelbottom=True)
    return all_axes[:shown]


def curve(axes: Axes, rows: pd.DataFrame, columns: tuple[str, str, str], scale: float, style: dict[str, Any]) -> None:
    """A marker in the middle of each bin, and its interval shaded over the bin. Open where the interval reaches 0 or there is none, and for a G-SNR
    where it is not above its floor; crossed out where a target's projector underfits."""
    left, width = rows["t_low"].to_numpy(), (rows["t_high"] - rows["t_low"]).to_numpy()
    value, low, high = (scale * rows[c].to_numpy() for c in columns)
    known, t = np.isfinite(low) & np.isfinite(high), left + width / 2
    box: dict[str, Any] = {"align": "edge", "color": style["color"], "alpha": 0.17, "lw": 0, "zorder": 1}
    axes.bar(left[known], (high - low)[known], width[known], low[known], **box)
    for end in (low, high):
        axes.hlines(end[known], left[known], (left + width)[known], color=style["color"], lw=0.5, alpha=0.6, zorder=1)
    axes.plot(t, value, zorder=2, **style)
    with np.errstate(invalid="ignore"):
        unseen = ~((low > 0) | (high < 0))
    if columns in (GSNR, ABOVE_FLOOR):
        floored = rows["floor"].notna().to_numpy()
        unseen = rows["below_detection"].to_numpy(bool) | np.where(floored, ~rows["above_floor"].to_numpy(bool), unseen)
        short = (rows["underfit"].astype(bool) & (rows["control"] == "none")).to_numpy()
        axes.plot(t[short], value[short], zorder=4, **CROSS)
    axes.plot(t[unseen], value[unseen], style["marker"], color=style["color"], zorder=3, **OPEN)


def panel(axes: Axes, cells: pd.DataFrame, keys: list[Key], columns: tuple[str, str, str], targets: Targets, scale: float = 1.0) -> None:
    """One curve a key, and a line at 0. Labels say which projector only where there are several."""
    several = len({projector for _, _, projector in keys}) > 1
    for key in keys:
        label = targets.name(key if several else (key[0], key[1], "fit"))
        curve(axes, rows_of(cells, key), columns, scale, targets.style(key) | {"label": label})
    axes.axhline(0, color="black", lw=0.6, zorder=1.5)
    axes.set(xlim=(0, 1), xlabel=T_LABEL)


def floor_band(axes: Axes, cells: pd.DataFrame, keys: list[Key], scale: float, less: bool = False) -> None:
    """Shades, bin by bin, what the controls of these targets reach, with their intervals; less: the same less what they reach."""
    rows = pd.concat([rows_of(cells, key) for key in keys])
    rows = rows[rows["floor"].notna()]
    taken = rows["floor"] if less else 0.0
    ends = rows.assign(low=scale * (rows["floor_low"] - taken), high=scale * (rows["floor_high"] - taken))
    of_bin = ends.groupby("t_low").agg(t_high=("t_high", "first"), low=("low", "min"), high=("high", "max")).reset_index()
    box = (of_bin["t_low"], of_bin["high"] - of_bin["low"], of_bin["t_high"] - of_bin["t_low"], of_bin["low"])
    axes.bar(*box, align="edge", zorder=0, **FLOOR_LOOK)


def symlog(all_axes: list[Axes]) -> None:
    """One scale for all of them: linear up to +-LINEAR, then logarithmic, with plain numbers on every panel."""
    ends = [end for axes in all_axes for end in axes.dataLim.intervaly]
    low, high = min([-0.4 * LINEAR, *ends]), max([1.2 * LINEAR, *ends])
    ticks = [0.0, LINEAR / 2, *(side * LINEAR * 10**k * part for side in (1, -1) for k in range(8) for part in (1, 3))]
    for axes in all_axes:
        axes.set_yscale("symlog", linthresh=LINEAR)
        axes.set_yticks([tick for tick in sorted(ticks) if low <= tick <= high])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "\N{MINUS SIGN}"))
        axes.minorticks_off()
        axes.tick_params(labelleft=True)
        axes.set_ylim(1.15 * low, 1.3 * high)


def legend_below(axes: Axes, columns: int) -> None:
    """Below the axis of t, where it hides nothing; in points, so whatever the height."""
    look: dict[str, Any] = {"borderaxespad": 4.6, "columnspacing": 1.0, "handletextpad": 0.4, "handlelength": 2.2}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, **look)


def legend_of_signs(figure: Figure, cells: pd.DataFrame, floor: str, columns: int) -> None:
    """What markers, shades and the axis of a G-SNR mean, at the foot of the figure. floor: what is shaded grey, "" for nothing."""
    look: dict[str, Any] = {"ncols": columns, "columnspacing": 1.2, "handletextpad": 0.4, "handlelength": 1.8}
    figure.legend(handles=_signs(cells, floor), title=UNITS, loc="outside lower center", **look)


def _signs(cells: pd.DataFrame, floor: str) -> list[Artist]:
    grey: dict[str, Any] = {"color": "0.35", "marker": "o", "ls": ""}
    above = "above its floor (paired test)" if floor else "detected"
    found: list[Artist] = [
        Line2D([], [], **grey, label=above),
        Line2D([], [], **grey, **OPEN, label="not " + ("above it, or not detected" if floor else "detected")),
        Patch(facecolor=(*to_rgb(COLOURS[0]), 0.17), edgecolor=(*to_rgb(COLOURS[0]), 0.6), lw=0.5, label="95 % interval of a bin"),
    ]
    if floor:
        found.append(Patch(**FLOOR_LOOK, label=floor))
    if (cells["underfit"].astype(bool) & (cells["control"] == "none")).any():
        found.append(Line2D([], [], **CROSS, label="projector reaches less than a constant"))
    return found
