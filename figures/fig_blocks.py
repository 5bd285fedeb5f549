"""Blocks: B x G-SNR of the alignment gradient per parameter group and bin of t, one panel a target."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from gsnr.figures._curves import keys_of, one_checkpoint, rows_of
from gsnr.figures.style import PAGE, T_LABEL, paper
from gsnr.table import target_name

TABLE = "alignment"
COLUMNS = 4


def _order(groups: list[str]) -> list[str]:
    """Embedders, blocks from the first to the tap, kinds of layers, all."""
    blocks = sorted((g for g in groups if g.startswith("block ")), key=lambda g: int(g.split()[1]))
    return [g for g in ("embedders", *blocks, "attention", "MLP", "adaLN", "all") if g in groups]


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Projectors are fitted alike. A dot marks cells whose interval does not lie above 0. The colour
    scale is linear below 1 and logarithmic beyond."""
    one_checkpoint(cells)
    cells = cells[(cells["projector"] == "fit") & (cells["control"] != "constant")]
    if cells.empty:
        raise ValueError("fig_blocks: the table has no projectors that were fitted alike; measure again with --projector fit")
    keys, groups = keys_of(cells), _order(list(dict.fromkeys(cells["group"])))
    largest = max(1.0, float(np.nanmax(np.abs(cells.loc[cells["group"].isin(groups), "gsnr_batch"]))))
    norm = SymLogNorm(linthresh=1.0, vmin=-largest, vmax=largest)
    rows = -(-len(keys) // COLUMNS)
    with paper():
        figure = Figure(figsize=(PAGE, 0.4 + (0.5 + 0.16 * len(groups)) * rows), layout="constrained")
        all_axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
        mesh = None
        for axes in all_axes.ravel()[len(keys) :]:
            axes.set_visible(False)
        for i, (axes, key) in enumerate(zip(all_axes.ravel(), keys, strict=False)):
            here = rows_of(cells, key)
            value = here.pivot(index="group", columns="bin", values="gsnr_batch").loc[groups].to_numpy()
            unseen = here.pivot(index="group", columns="bin", values="below_detection").loc[groups].to_numpy(dtype=bool)
            bins = here.drop_duplicates("bin")
            edges = np.append(bins["t_low"].to_numpy(), bins["t_high"].iloc[-1])
            mesh = axes.pcolormesh(edges, np.arange(len(groups) + 1), value, norm=norm, cmap="PuOr_r", rasterized=True)
            row, column = np.nonzero(unseen)
            axes.plot((edges[column] + edges[column + 1]) / 2, row + 0.5, ".", color="black", markersize=2)
            axes.set_yticks(np.arange(len(groups)) + 0.5, groups)
            axes.invert_yaxis() if i == 0 else None
            axes.set_title(target_name(*key), loc="left")
        for axes in all_axes[-1]:
            axes.set_xlabel(T_LABEL)
        assert mesh is not None
        bar = figure.colorbar(mesh, ax=all_axes, shrink=0.9, aspect=30)
        bar.set_label(f"{int(cells['batch_ref'].iloc[0])} $\\times$ G-SNR")
    return figure
