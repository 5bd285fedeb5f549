"""Direction: the angle between alignment and denoising gradients over t, and the part of the alignment signal that also denoises."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import keys_of, panel, rows_of, single
from gsnr.figures.fig2_gsnr import panels_of
from gsnr.figures.style import PAGE, T_LABEL, paper

TABLE = "alignment"
COSINE = ("cos_denoise", "cos_low", "cos_high")
CONSTRUCTIVE = ("gsnr_constructive", "no_low", "no_high")
WIDEST = 2.0  # an interval wider than the range of a cosine says nothing


def resolved_only(cells: pd.DataFrame) -> pd.DataFrame:
    """The same without the angles that say nothing, so that lines break there: those of an alignment gradient that is not resolved above the
    noise, and those with an interval as wide as the range."""
    said = (cells["cos_high"] - cells["cos_low"] < WIDEST) & ~cells["below_detection"]
    return cells.assign(**{column: cells[column].where(said) for column in (*COSINE, "gsnr_constructive")})


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Projectors are fitted alike. Left: cos_denoise with its 95 % interval (not clipped to the grey
    range), where that is narrower than 2 and the alignment gradient is resolved above the noise. Right, in the same bins: sign(cos) cos^2 G-SNR,
    times B, which has no interval."""
    cells = single(cells)
    panels = panels_of(keys_of(cells[cells["projector"] == "fit"]))
    if not panels:
        raise ValueError("fig_direction: the table has no projectors that were fitted alike; measure again with --projector fit")
    batch_ref = int(cells["batch_ref"].iloc[0])
    cells = resolved_only(cells)
    cells = cells.assign(no_low=cells["gsnr_constructive"], no_high=cells["gsnr_constructive"])
    with paper():
        figure = Figure(figsize=(PAGE, 2.5 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), 2, sharex=True, squeeze=False)
        for row, (letter, (title, keys)) in enumerate(zip("abcd", panels.items(), strict=False)):
            left, right = all_axes[row]
            panel(left, cells, [k for k in keys if rows_of(cells, k)["cos_denoise"].notna().any()], COSINE)
            left.axhspan(-1, 1, color="0.95", zorder=-1)
            left.set_ylabel("cosine to the denoising gradient")
            left.set_title(f"({letter}1) {title}: angle", loc="left")
            panel(right, cells, keys, CONSTRUCTIVE, batch_ref)
            right.set_ylabel(f"{batch_ref} $\\times$ constructive G-SNR")
            right.set_title(rf"({letter}2) sign(cos) cos$^2$ G-SNR", loc="left")
        for axes in all_axes[-1]:
            axes.set_xlabel(T_LABEL)
    return figure
