"""Do alignment and denoising pull the same way?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gsnr.figures._curves import keys_of, single
from gsnr.figures._maps import ROW, as_text, by_bin, edges_of, hatch, hatched, heat, numbers
from gsnr.figures.fig2_gsnr import panels_of
from gsnr.figures.style import PAGE, T_LABEL, paper
from gsnr.figures.targets import Key, Targets

TABLE = "alignment"
TITLE = "Does alignment pull the same way as denoising?"
CAPTION = (
    "Left: the cosine between the alignment and the denoising gradient; orange: they agree, purple: they pull apart; bold: the 95 % interval "
    "does not hold 0; a triangle: the interval reaches beyond 1 or -1. Hatched: nothing can be said, as the alignment gradient is not detected "
    "or not above its floor, or the interval is as wide as the range. Right, where the angle's interval does not hold 0 (of others not even the "
    "sign is known): sign(cos) cos^2 G-SNR, times B, an unbiased estimate. Projectors are fitted alike."
)
COSINE = ("cos_denoise", "cos_low", "cos_high")
WIDEST = 2.0  # an interval wider than the range of a cosine says nothing
EMPTY = "0.94"  # the colour below hatched cells
BEYOND: dict[str, Any] = {"marker": "^", "ls": "", "color": "black", "markersize": 2.2}


def resolved_only(cells: pd.DataFrame) -> pd.DataFrame:
    """The same without the angles that say nothing: those of an alignment gradient that is not detected, or not above its floor, and those with an
    interval as wide as the range; and without a constructive G-SNR where the angle's interval holds 0."""
    own = ~cells["below_detection"].astype(bool) & (cells["floor"].isna() | cells["above_floor"].astype(bool))
    said = (cells["cos_high"] - cells["cos_low"] < WIDEST) & own
    sure = (cells["cos_low"] > 0) | (cells["cos_high"] < 0)
    angles = {column: cells[column].where(said) for column in COSINE}
    return cells.assign(**angles, gsnr_constructive=cells["gsnr_constructive"].where(said & sure))


def _order(cells: pd.DataFrame) -> list[Key]:
    """True targets, those of one kind together."""
    panels = panels_of(keys_of(cells))
    return [key for key in dict.fromkeys(key for keys in panels.values() for key in keys) if key[1] == "none"]


def _angles(axes: Axes, edges: NDArray[Any], names: list[str], cells: pd.DataFrame, norm: Normalize) -> bool:
    """Whether an interval reaches beyond 1."""
    value, low, high = (by_bin(cells, "name", names, column) for column in COSINE)
    mesh = heat(axes, edges, names, value, norm=norm, cmap="PuOr_r")
    hatch(axes, edges, np.isnan(value), EMPTY)
    with np.errstate(invalid="ignore"):
        beyond, sure = (high > 1) | (low < -1), (low > 0) | (high < 0)
    numbers(axes, edges, mesh, as_text(value, "+.2f"), sure)
    row, column = np.nonzero(beyond)
    axes.plot(edges[column] + 0.85 * (edges[column + 1] - edges[column]), row + 0.15, **BEYOND)
    return bool(beyond.any())


def _short(value: NDArray[Any]) -> NDArray[Any]:
    """As texts of at most five characters: "+1.4", "−48", "−1.3k"."""
    thousands = np.char.add(as_text(value / 1000, "+.1f"), "k")
    return np.select([abs(value) >= 999.5, abs(value) >= 9.95], [thousands, as_text(value, "+.0f")], as_text(value, "+.1f"))


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Raises ValueError for one of several, or without fitted projectors."""
    targets, cells = Targets(cells), single(cells)
    cells = cells[cells["projector"].isin(("fit", "none"))]
    keys = _order(cells)
    if not keys:
        raise ValueError("fig_direction: the table has no projectors that were fitted alike; measure again with --projector fit")
    batch_ref = int(cells["batch_ref"].iloc[0])
    named = {key: targets.name(key) for key in keys}
    cells = resolved_only(cells[cells["control"] == "none"])
    cells = cells.assign(name=[named[key] for key in zip(cells["target"], cells["control"], cells["projector"], strict=True)])
    names, edges = list(named.values()), edges_of(cells)
    part = batch_ref * by_bin(cells, "name", names, "gsnr_constructive")
    largest = max(10.0, float(np.nanmax(np.abs(part), initial=0.0)))
    norms = Normalize(-1, 1), SymLogNorm(linthresh=1.0, vmin=-largest, vmax=largest)
    with paper():
        figure = Figure(figsize=(PAGE, 1.35 + ROW * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        beyond = _angles(left, edges, names, cells, norms[0])
        mesh = heat(right, edges, names, part, norm=norms[1], cmap="PuOr_r")
        hatch(right, edges, np.isnan(part), EMPTY)
        numbers(right, edges, mesh, _short(part))
        left.set_title("(a) cosine of the two gradients", loc="left")
        right.set_title(rf"(b) {batch_ref} $\times$ sign(cos) cos$^2$ G-SNR", loc="left")
        for axes, norm in zip((left, right), norms, strict=True):
            axes.set(xlabel=T_LABEL, ylabel="target" if axes is left else "")
            figure.colorbar(ScalarMappable(norm, "PuOr_r"), ax=axes, pad=0.02, aspect=15, label="cosine" if axes is left else "signal")
        handles = [hatched("nothing can be said", EMPTY)]
        handles += [Line2D([], [], **BEYOND, label="interval reaches beyond 1 or -1")] if beyond else []  # type: ignore[list-item]
        note = "orange: with denoising, purple: against; bold: the 95 % interval does not hold 0"
        figure.legend(handles=handles, title=note, loc="outside lower center", ncols=2)
    return figure
