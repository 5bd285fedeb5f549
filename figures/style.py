"""The one style: column width, embedded fonts, colours that survive colour blindness (Okabe and Ito) and greyscale (markers differ)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from gsnr import files

COLUMN, PAGE = 3.3, 6.9  # inches: one column, the full page
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
CONTROL, GREY = "#666666", "#999999"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
T_LABEL = "t  (0 = data, 1 = noise)"
PADDING = 0.02  # inches
FORMATS = ("png", "pdf", "svg")
DATELESS: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

_RC: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 300,
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
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
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


def placed(figure: Figure) -> Bbox:
    """Places what a figure holds, once for all that it is written to; the box around it in inches. To be called within `paper`."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # "none" would draw it once more, unseen, for each file
    return figure.get_tightbbox().padded(PADDING)


def save(figure: Figure, paths: Sequence[Path], replacing: files.Replacing = files.replacing) -> None:
    """Replaces PNG, PDF and SVG files, by their endings, with the style's resolution and embedded fonts; none carries a date.

    replacing: that of `gsnr.files.together`, for several figures that appear together."""
    with paper():
        crop = placed(figure)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as aside:
                figure.savefig(aside, bbox_inches=crop, metadata=DATELESS.get(path.suffix))
