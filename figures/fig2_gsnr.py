"""Fig. 2: B x G-SNR of the alignment gradient over t, per target, with 95 % intervals, the shuffled control and the noise floor at 0.

The constant control, which stands far above everything else, is drawn by `fig_controls`.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import Key, keys_of, panel, single
from gsnr.figures.style import COLUMN, PAGE, T_LABEL, paper

TABLE = "alignment"
FIXED = ("repa", "irepa", "sra", "sra2")  # targets that are no VAE layers: Fig. 2(a)
LAYERS = ("uniform_G1", "uniform_G2", "uniform_mid", "uniform_deep")  # one group of VAE layers each: Fig. 2(b)
GSNR = ("gsnr", "gsnr_low", "gsnr_high")


def panels_of(keys: list[Key]) -> dict[str, list[Key]]:
    """title -> what is drawn together, the shuffled control in each; few targets make one panel."""
    keys = [k for k in keys if k[1] != "constant"]
    fitted, own = [k for k in keys if k[2] == "fit"], [k for k in keys if k[2] == "ckpt"]
    true, controls = [k for k in fitted if k[1] == "none"], [k for k in fitted if k[1] != "none"]
    panels = {"projectors fitted alike": true}
    if len(true) > 4:
        mixed = [k for k in true if k[0] not in (*FIXED, "uniform_G1", "uniform_G2")]
        panels = {
            "targets beside the VAE's layers": [k for k in true if k[0] in FIXED],
            "groups of VAE layers": [k for k in true if k[0] in LAYERS],
            "mixtures": mixed,
        }
    panels = {title: [*some, *controls] for title, some in panels.items() if some}
    if own:
        panels["the checkpoint's own projector"] = [*[k for k in true if k[0] == own[0][0]], *own]
    return panels


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Projectors are fitted alike in all panels but the last (where there is one): the
    checkpoint's own beside the fitted one. Open markers: the interval reaches 0."""
    cells = single(cells)
    panels = panels_of(keys_of(cells))
    batch_ref = int(cells["batch_ref"].iloc[0])
    columns = 2 if len(panels) > 2 else 1
    rows = -(-len(panels) // columns)
    with paper():
        figure = Figure(figsize=(PAGE if columns == 2 else COLUMN, 2.3 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes in all_axes.ravel()[len(panels) :]:
            axes.set_visible(False)
        for axes, letter, (title, keys) in zip(all_axes.ravel(), "abcdef", panels.items(), strict=False):
            panel(axes, cells, keys, GSNR, batch_ref)
            axes.set_title(f"({letter}) {title}", loc="left")
            axes.set_ylabel(f"{batch_ref} $\\times$ G-SNR")
        for axes in all_axes[-1]:
            axes.set_xlabel(T_LABEL)
    return figure
