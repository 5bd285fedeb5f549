"""Do alignment and denoising pull the same way?"""

from __future__ import annotations

from string import ascii_lowercase

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures._curves import grid, keys_of, panel, rows_of, single
from gsnr.figures.fig2_gsnr import panels_of
from gsnr.figures.style import PAGE, paper
from gsnr.figures.targets import Targets

TABLE = "alignment"
TITLE = "The angle between the alignment and the denoising gradient, and the part of the alignment signal that also denoises"
CAPTION = (
    "Projectors are fitted alike. Left: the cosine with its 95 % interval (not clipped to the grey range), where that is narrower than 2 and the "
    "alignment gradient is resolved above the noise. Right, in the same bins: sign(cos) cos^2 G-SNR, times B, which has no interval."
)
COSINE = ("cos_denoise", "cos_low", "cos_high")
CONSTRUCTIVE = ("gsnr_constructive", "no_low", "no_high")
WIDEST = 2.0  # an interval wider than the range of a cosine says nothing


def resolved_only(cells: pd.DataFrame) -> pd.DataFrame:
    """The same without the angles that say nothing, so that lines break there: those of an alignment gradient that is not resolved above the
    noise, and those with an interval as wide as the range."""
    said = (cells["cos_high"] - cells["cos_low"] < WIDEST) & ~cells["below_detection"]
    return cells.assign(**{column: cells[column].where(said) for column in (*COSINE, "gsnr_constructive")})


def draw(cells: pd.DataFrame) -> Figure:
    """cells: an `alignment` table of one checkpoint. Raises ValueError for one of several, or without fitted projectors."""
    targets, cells = Targets(cells), single(cells)
    panels = panels_of(keys_of(cells[cells["projector"].isin(("fit", "none"))]))
    if not panels:
        raise ValueError("fig_direction: the table has no projectors that were fitted alike; measure again with --projector fit")
    batch_ref = int(cells["batch_ref"].iloc[0])
    cells = resolved_only(cells)
    cells = cells.assign(no_low=cells["gsnr_constructive"], no_high=cells["gsnr_constructive"])
    with paper():
        figure = Figure(figsize=(PAGE, 2.5 * len(panels)), layout="constrained")
        all_axes = grid(figure, 2 * len(panels), 2)
        for left, right, letter, (title, keys) in zip(all_axes[::2], all_axes[1::2], ascii_lowercase, panels.items(), strict=False):
            panel(left, cells, [k for k in keys if k[1] == "none" and rows_of(cells, k)["cos_denoise"].notna().any()], COSINE, targets)
            left.axhspan(-1, 1, color="0.95", zorder=-1)
            left.set_ylabel("cosine to the denoising gradient")
            left.set_title(f"({letter}1) {title}: angle", loc="left")
            panel(right, cells, [key for key in keys if key[1] == "none"], CONSTRUCTIVE, targets, batch_ref)
            right.set_ylabel(f"{batch_ref} $\\times$ constructive G-SNR")
            right.set_title(rf"({letter}2) sign(cos) cos$^2$ G-SNR", loc="left")
    return figure
