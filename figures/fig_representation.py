"""What hidden states know over t, block by block."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gsnr.figures._curves import one_checkpoint
from gsnr.figures._maps import ROW, as_text, by_bin, edges_of, hatch, hatched, heat, numbers
from gsnr.figures.style import COLUMN, PAGE, T_LABEL, paper

TABLE = "representation"
TITLE = "What each block knows of the image, from noise to data"
CAPTION = (
    "Accuracy: of a linear probe for the class, which the model is not told, on held-out images of data with classes. CKNNA: to the features of the "
    "image teacher (k = 10). Hatched: the 95 % interval (Wilson; jackknife over sixteenths of the images) does not lie above what knowing nothing "
    "gives, which is always guessing the most frequent class, and the teacher's features of other images."
)
TITLES = {"linear_probe_accuracy": "linear probe, held-out accuracy", "cknna": "CKNNA to the teacher (k = 10)"}
UNITS = {"linear_probe_accuracy": "accuracy", "cknna": "CKNNA"}
NOTHING = {"linear_probe_accuracy": "guessing", "cknna": "other images"}


def _number(group: str) -> int:
    return int(group.split()[1])


def _known(rows: pd.DataFrame, nothing: pd.DataFrame, blocks: list[str]) -> NDArray[np.bool_]:
    """(blocks, bins): whether an interval lies above what knowing nothing gives, and above the interval of that where it has one."""
    low, value, high = by_bin(rows, "group", blocks, "low"), *(by_bin(nothing, "group", blocks, c) for c in ("value", "high"))
    with np.errstate(invalid="ignore"):
        return np.asarray(low > np.where(np.isnan(high), value, high))


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `representation` table of one checkpoint. Raises ValueError for one of several, or without either metric."""
    one_checkpoint(metrics)
    metrics = metrics[metrics["group"].str.fullmatch(r"block \d+")]
    true, controls = metrics[metrics["control"] == "none"], metrics[metrics["control"] != "none"]
    panels = [(name, rows) for name in TITLES if not (rows := true[true["metric"] == name]).empty]
    if not panels:
        raise ValueError(f"fig_representation: the table has no rows of {' or '.join(TITLES)}")
    blocks = sorted(true["group"].unique(), key=_number, reverse=True)
    with paper():
        figure = Figure(figsize=(PAGE if len(panels) > 1 else COLUMN, 1.15 + ROW * len(blocks)), layout="constrained")
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, letter, (name, rows) in zip(all_axes, ascii_lowercase, panels, strict=False):
            edges, value = edges_of(rows), by_bin(rows, "group", blocks, "value")
            colours: dict[str, Any] = {"cmap": "cividis", "vmin": min(0.0, float(np.nanmin(value))), "vmax": float(np.nanmax(value))}
            mesh = heat(axes, edges, blocks, value, **colours)
            nothing = controls[controls["metric"] == name]
            level = f"; {NOTHING[name]}: {nothing['value'].mean():.2f}" if not nothing.empty else ""
            if not nothing.empty:
                hatch(axes, edges, ~_known(rows, nothing, blocks))
            numbers(axes, edges, mesh, as_text(value, ".2f" if np.nanmax(value) > 0.1 else ".3f"))
            axes.set_title(f"({letter}) {TITLES[name]}{level}", loc="left")
            axes.set(xlabel=T_LABEL, ylabel="block, the last on top")
            axes.set_yticklabels([str(_number(block)) for block in blocks])
            figure.colorbar(mesh, ax=axes, pad=0.02, aspect=15, label=UNITS[name])
        figure.legend(handles=[hatched("not above what knowing nothing gives (95 %)")], loc="outside lower center")
    return figure
