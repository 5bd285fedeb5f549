"""What `gsnr recommend` found: every row under every criterion, the picks, the controls, and the benefit where forks were trained."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gsnr import ranking
from gsnr.figures.style import COLOURS, CONTROL, PAGE, paper
from gsnr.table import METRIC_COLUMNS, NAN

TABLE = "recommend"
TITLE = "Which target, at which block, for which t: each criterion's answer"
CAPTION = (
    "A row is a target at a block, over a range of t; a column is a criterion. Colour is the rank within the column, darker is higher; the number "
    "is its value, a dash where it is not defined, which ranks last. Boxed: the criterion's pick. Grey names are negative controls, whose target "
    "says nothing about the image; a criterion that ranks one above a target has failed, and its name is red. Right, where forks were trained: "
    "what a row brought against no alignment; bars are 95 % intervals over seeds, and right of the line is better."
)
BENEFIT, FAILED, ROW, COLUMN = "benefit", COLOURS[3], 0.21, 0.62  # inches of a row and a column
Array = NDArray[np.float64]


def example() -> list[dict[str, Any]]:
    """Made-up rows: two targets and a control under two criteria, one of which fails, with a benefit."""
    plain: dict[str, Any] = {"string": "none", "int64": 1, "float64": NAN, "bool": False}
    base = {name: plain[dtype] for name, dtype in METRIC_COLUMNS.items()} | {
        "probe": TABLE,
        "group": "block 2",
        "bin": 0,
        "t_low": 0.0,
        "t_high": 1.0,
    }
    values = {"gap": (0.9, 0.5, NAN), "cosine": (0.1, 0.2, 0.3), BENEFIT: (0.02, -0.01, 0.0)}
    which = (("repa@2", "none"), ("ahpa@2", "none"), ("shuffled:repa@2", "shuffled"))
    return [
        base | {"target": target, "control": control, "metric": metric, "value": value, "low": value - 0.05, "high": value + 0.05}
        for metric, of in values.items()
        for (target, control), value in zip(which, of, strict=True)
    ]


def _name(row: pd.Series) -> str:
    """A row in words: "repa, block 2, t 0 to 0.5"."""
    target = str(row["target"]).partition("@")[0].partition("=")[0]
    whole = (row["t_low"], row["t_high"]) == (0, 1)
    return f"{target}, {row['group']}" + ("" if whole else f", t {row['t_low']:g} to {row['t_high']:g}")


def _ranks(values_R: Array) -> Array:
    """1 for the largest, 0 for the smallest; NaN where there is no value."""
    known = np.isfinite(values_R)
    places = np.full(len(values_R), np.nan)
    places[known] = (pd.Series(values_R[known]).rank().to_numpy() - 1) / max(1, known.sum() - 1)
    return places


def _heat(axes: Axes, values_RC: Array, control_R: NDArray[np.bool_]) -> list[bool]:
    """The columns, and whether each failed."""
    ranks_RC = np.stack([_ranks(column) for column in values_RC.T], axis=1)
    axes.imshow(ranks_RC, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for (i, k), value in np.ndenumerate(values_RC):
        axes.text(k, i, "-" if np.isnan(value) else f"{value:.2g}", ha="center", va="center", fontsize=6)
    failed = []
    for k, column in enumerate(values_RC.T):
        chosen = ranking.pick(np.where(control_R, np.nan, column))
        if chosen is not None:
            axes.add_patch(Rectangle((k - 0.5, chosen - 0.5), 1, 1, fill=False, lw=1.2, ec="black"))
        failed.append(bool(ranking.misplaced(column, control_R)))
    return failed


def _gains(axes: Axes, rows: pd.DataFrame, metric: str) -> None:
    """The benefit of each row, top down, in units of a power of ten. metric: what was compared."""
    value, low, high = (rows[name].to_numpy(np.float64) for name in ("value", "low", "high"))
    largest = np.nanmax(np.abs(np.stack([value, low, high])), initial=0.0)
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    power = power if abs(power) > 1 else 0
    value, low, high = (x / 10.0**power for x in (value, low, high))
    unit = f", $10^{{{power}}}$" if power else ""
    bars = np.nan_to_num(np.stack([value - low, high - value]))
    axes.errorbar(value, np.arange(len(rows)), xerr=bars, fmt="o", color=COLOURS[0], ms=3, lw=0.8)
    axes.axvline(0, color="black", lw=0.6)
    axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=[], ylabel="the same rows", xlabel=f"benefit by forks:\n{metric}{unit}\n(> 0: better than none)")


def draw(table: pd.DataFrame) -> Figure:
    """Raises ValueError for a table of several checkpoints, or without criteria."""
    if table.groupby(["run", "checkpoint"]).ngroups > 1:
        raise ValueError("fig_recommend: the table is of several checkpoints; name one")
    if table.duplicated(["target", "metric"]).any():
        raise ValueError("fig_recommend: the table has several values of one row and criterion; `gsnr recommend` makes one")
    labels = table.attrs.get("labels", {})
    rows = table.drop_duplicates("target").reset_index(drop=True)
    wide = table.pivot(index="target", columns="metric", values="value").loc[rows["target"]]
    criteria = [name for name in dict.fromkeys(table["metric"]) if name != BENEFIT]
    if not criteria:
        raise ValueError("fig_recommend: the table holds no criterion")
    control_R, gains = (rows["control"] != "none").to_numpy(), table[table["metric"] == BENEFIT]
    with paper():
        width = min(PAGE, 1.8 + COLUMN * len(criteria) + (1.4 if len(gains) else 0))
        figure = Figure(figsize=(width, 1.2 + ROW * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(COLUMN * len(criteria), 1.4)) if len(gains) else (figure.subplots(), None)
        failed = _heat(left, wide[criteria].to_numpy(np.float64), control_R)
        left.set_yticks(range(len(rows)), [_name(row) for _, row in rows.iterrows()])
        left.set_xticks(range(len(criteria)), [textwrap.fill(str(labels.get(name, name)), 13, break_long_words=False) for name in criteria])
        left.tick_params(length=0, labeltop=True, labelbottom=False)
        for tick, wrong in zip(left.get_xticklabels(), failed, strict=True):
            tick.set(rotation=40, ha="left", rotation_mode="anchor", color=FAILED if wrong else "black")
        for tick, control in zip(left.get_yticklabels(), control_R, strict=True):
            tick.set_color(CONTROL if control else "black")
        left.spines[:].set_visible(False)
        if right is not None:
            _gains(right, gains.set_index("target").loc[rows["target"]], str(labels.get(BENEFIT, "")))
        figure.text(
            0.0,
            -0.01,
            "colour: rank within its column, darker is higher    boxed: the pick    red: failed, a negative control (grey) ranks above a target",
            va="top",
            fontsize=7,
        )
    return figure
