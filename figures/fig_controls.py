"""A target beside its controls, with each kind of projector."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import GSNR, keys_of, panel, single
from gsnr.figures.style import PAGE, T_LABEL, paper
from gsnr.figures.targets import Targets

TABLE = "alignment"
TITLE = "A target beside the same target of other images, of other images of its class, and beside a constant vector"
CAPTION = (
    "A projector that was fitted to the shuffled control leaves no signal but what all images share (a constant is learnt exactly, and leaves "
    "none); with the checkpoint's own projector controls have signal, so a high G-SNR by itself does not speak for a target. Above: B x G-SNR "
    "with 95 % intervals, linear below 10 and logarithmic beyond; open markers: the interval reaches 0. Below: the alignment loss."
)
TITLES = {"fit": "projectors fitted alike", "ckpt": "the checkpoint's own projector", "fresh": "fresh projectors"}


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. The first target that has controls is drawn. Raises ValueError where none has."""
    targets, cells = Targets(cells), single(cells)
    controlled = cells.loc[cells["control"] != "none", "target"]
    if controlled.empty:
        raise ValueError("fig_controls: the table has no controls; measure a target with --controls shuffled,constant")
    cells = cells[cells["target"] == controlled.iloc[0]]
    projectors = [p for p in TITLES if p in set(cells["projector"])]
    batch_ref = int(cells["batch_ref"].iloc[0])
    losses = cells.assign(no_low=cells["loss"], no_high=cells["loss"])
    with paper():
        figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
        all_axes = figure.subplots(2, len(projectors), sharex=True, sharey="row", squeeze=False)
        for column, (letter, projector) in enumerate(zip("abc", projectors, strict=False)):
            keys = [k for k in keys_of(cells) if k[2] == projector]
            above, below = all_axes[:, column]
            panel(above, cells, keys, GSNR, targets, batch_ref)
            above.set_title(f"({letter}) {TITLES[projector]}", loc="left")
            panel(below, losses, keys, ("loss", "no_low", "no_high"), targets)
            below.get_legend().remove()
            below.set_xlabel(T_LABEL)
        all_axes[0, 0].set_yscale("symlog", linthresh=10)
        ends = batch_ref * cells[["gsnr_low", "gsnr_high"]]
        all_axes[0, 0].set_ylim(min(-5.0, 1.2 * ends["gsnr_low"].min()), 100 * ends["gsnr_high"].max())  # room for the legend
        all_axes[1, 0].set_ylim(min(0.0, 1.05 * cells["loss"].min()), 1.05 * cells["loss"].max())
        all_axes[0, 0].set_ylabel(f"{batch_ref} $\\times$ G-SNR")
        all_axes[1, 0].set_ylabel("alignment loss")
    return figure
