"""Where in the backbone the alignment gradient has signal: one panel a target, one row a parameter group."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from gsnr.figures._curves import grid, keys_of, one_checkpoint, rows_of
from gsnr.figures._maps import by_bin, edges_of, hatch, hatched, heat
from gsnr.figures.style import COLUMN, PAGE, paper
from gsnr.figures.targets import Targets

TABLE = "alignment"
TITLE = "Where in the network the alignment gradient has signal"
CAPTION = (
    "B x G-SNR. Projectors are fitted alike. Shuffled: the first target, of other images. Hatched: not detected. "
    "The colour scale is linear below 1 and logarithmic beyond. Blocks end at the tap, above which the alignment gradient is zero."
)
COLUMNS = 4
KINDS = ("embedders", "attention", "MLP", "adaLN", "all")  # rows beside the blocks


def _order(groups: list[str]) -> list[str]:
    """Embedders, blocks from the first to the tap, kinds of layers, all."""
    blocks = sorted((g for g in groups if g.startswith("block ")), key=lambda g: int(g.split()[1]))
    return [g for g in (KINDS[0], *blocks, *KINDS[1:]) if g in groups]


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Raises ValueError for one of several, or without fitted projectors or parameter groups."""
    one_checkpoint(cells)
    targets = Targets(cells)
    first = cells.loc[cells["control"] == "shuffled", "target"].head(1)
    cells = cells[(cells["projector"] == "fit") & ((cells["control"] == "none") | (cells["control"] == "shuffled") & cells["target"].isin(first))]
    if cells.empty:
        raise ValueError("fig_blocks: the table has no projectors that were fitted alike; measure again with --projector fit")
    keys, groups = keys_of(cells), _order(list(dict.fromkeys(cells["group"])))
    if not groups:
        raise ValueError(f"fig_blocks: the table has no rows of blocks or of {', '.join(KINDS)}")
    largest = max(1.0, float(np.nanmax(np.abs(cells.loc[cells["group"].isin(groups), "gsnr_batch"]))))
    norm = SymLogNorm(linthresh=1.0, vmin=-largest, vmax=largest)
    columns = min(COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    with paper():
        figure = Figure(figsize=(max(COLUMN, PAGE * columns / COLUMNS), 0.6 + (0.5 + 0.16 * len(groups)) * rows), layout="constrained")
        all_axes = grid(figure, len(keys), columns, "t  (1 = noise)", sharey=True)
        mesh = None
        for axes, key in zip(all_axes, keys, strict=True):
            here = rows_of(cells, key)
            value = by_bin(here, "group", groups, "gsnr_batch")
            unseen = here.pivot(index="group", columns="bin", values="below_detection").reindex(groups, fill_value=False).to_numpy(dtype=bool)
            edges = edges_of(here)
            mesh = heat(axes, edges, groups, value, norm=norm, cmap="PuOr_r")
            hatch(axes, edges, unseen)
            axes.set_title(targets.name(key), loc="left")
        for axes in all_axes[::columns]:
            axes.set_ylabel("parameter group")
        assert mesh is not None
        bar = figure.colorbar(mesh, ax=figure.axes, shrink=0.9, aspect=30)
        bar.set_label(f"{int(cells['batch_ref'].iloc[0])} $\\times$ G-SNR")
        figure.legend(handles=[hatched("not detected: the 95 % interval does not lie above 0")], loc="outside lower center")
    return figure
