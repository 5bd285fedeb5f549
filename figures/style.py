"""The one style: column width, embedded fonts, colours that survive colour blindness (Okabe and Ito) and greyscale (markers differ)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from gsnr import files

COLUMN, PAGE = 3.3, 6.9  # inches: one column, the full page
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
CONTROL, GREY = "#666666", "#999999"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
T_LABEL = "t  (0 = data, 1 = noise)"
FORMATS = ("png", "pdf", "svg")
DATELESS: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

_RC: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.02,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "gsnr",  # the same names inside, whenever it is drawn
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.handlelength": 2.8,  # room for two dashes
}


@contextmanager
def paper() -> Iterator[None]:
    """Figures drawn inside have the style; whatever was set before comes back after."""
    with mpl.rc_context(_RC):
        yield


def save(figure: Figure, path: Path, replacing: files.Replacing = files.replacing) -> None:
    """Replaces a PNG, PDF or SVG, by the path's ending, with the style's resolution and embedded fonts; none carries a date.

    replacing: that of `gsnr.files.together`, for several figures that appear together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with paper(), replacing(path) as aside:
        figure.savefig(aside, metadata=DATELESS.get(path.suffix))
