"""What blocks leave in the residual stream and what the loss hears of it, block by block and over t (after DAR's Figs. 2 and 5)."""

from __future__ import annotations

from string import ascii_lowercase

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from gsnr.figures._curves import one_checkpoint
from gsnr.figures.style import PAGE, T_LABEL, paper

TABLE = "residual_stream"
TITLE = "What each block leaves in the residual stream, and what the loss hears of it"
CAPTION = (
    "z_k: what block k leaves: in a plain model all later blocks hear it, in a routed one the next sublayer alone. (a) and (b) move against "
    "each other when the whole stream is scaled, which leaves the function as it is; (c) is their product, and it, (d) and (e) do not move. "
    "Gradients are those of a single sample's velocity loss, the mean over its latent. (d) Mean over tokens, each block with the next. (e) What"
    " attention (triangles) and MLP (circles) write over what they read, mean over tokens. (f) Held-out R^2 of t, read by ridge regression from"
    " the mean over tokens; block 0: from the embedding of the noisy latent. Shaded, and bars: 95 % intervals over images."
)
#          metric, title, label of y, logarithmic
PANELS = (
    ("rms", "size of the stream", "RMS of $z_k$", True),
    ("gradient_rms", "gradient that reaches it", r"RMS of $\partial L/\partial z_k$", True),
    ("gauge_free", "size times gradient", r"RMS $z_k$ $\times$ RMS $\partial L/\partial z_k$", True),
    ("token_cosine", "a block and the next", "cosine of $z_k$ and $z_{k+1}$", False),
)
SHARES = {"attention_share": ("^", -0.5, "attention"), "mlp_share": ("o", 0.0, "MLP")}  # marker, place beside the block, label
T_READ, LEARNT = "t_readability", "R² of t"


def _curve(axes: Axes, rows: pd.DataFrame, colour: object, marker: str = "o") -> None:
    """rows: of one bin, with their places "x"."""
    rows = rows.sort_values("x")
    axes.plot(rows["x"], rows["value"], color=colour, marker=marker, markersize=2.2 if len(rows) <= 30 else 0, lw=0.9)
    axes.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.25, lw=0)


def _logarithmic(axes: Axes) -> None:
    """With two numbers or more, whatever the range."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 1.5, 2, 3, 5, 7) if high < 4 * low else (1, 2, 5) if high < 50 * low else (1,)
    axes.yaxis.set(major_locator=LogLocator(subs=subs), major_formatter=StrMethodFormatter("{x:g}"), minor_formatter=NullFormatter())


def _sublayers(axes: Axes, blocks: pd.DataFrame, palette: ScalarMappable) -> None:
    for _, rows in blocks.groupby("bin"):
        colour = palette.to_rgba(rows["t"].iloc[0])
        both = [rows[rows["metric"] == metric].assign(x=rows["x"] + shift) for metric, (_, shift, _) in SHARES.items()]
        _curve(axes, pd.concat(both), colour, marker="")
        for part, (marker, *_) in zip(both, SHARES.values(), strict=True):
            axes.plot(part["x"], part["value"], color=colour, marker=marker, markersize=2.4, ls="")
    axes.legend(handles=[Line2D([], [], color="0.35", marker=marker, ls="", label=label) for marker, _, label in SHARES.values()], handlelength=1)
    axes.set(ylabel=r"$\|v\|\,/\,\|h\|$")
    axes.set_title("(e) written over read", loc="left")


def _readable(axes: Axes, rows: pd.DataFrame) -> None:
    x = rows["group"].str.extract(r"(\d+)")[0].fillna("0").astype(int)
    errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    axes.errorbar(x, rows["value"], errors, color="black", marker="o", elinewidth=0.6)
    axes.set(ylabel=f"{LEARNT}, held out", xlabel="block (0: the embedding)")
    axes.set_ylim(top=1.02)
    axes.set_title("(f) what it knows of t", loc="left")


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: a `residual_stream` table of one checkpoint. Raises ValueError for one of several, or without the stream's rows."""
    one_checkpoint(metrics)
    known = metrics[(metrics["target"] == "stream") & metrics["metric"].isin([*(name for name, *_ in PANELS), *SHARES])]
    blocks = known[known["group"].str.fullmatch(r"block \d+")]
    if blocks.empty:
        raise ValueError("fig_stream: the table has no rows of blocks; measure it again with --probe residual_stream")
    blocks = blocks.assign(x=blocks["group"].str.split().str[1].astype(float), t=(blocks["t_low"] + blocks["t_high"]) / 2)
    readable = metrics[metrics["metric"] == T_READ]
    palette = ScalarMappable(Normalize(0, 1), ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.92, 256))))  # its end is pale on white
    with paper():
        figure = Figure(figsize=(PAGE, 4.0), layout="constrained")
        all_axes = figure.subplots(2, 3).ravel()
        for axes, letter, (metric, title, label, logarithmic) in zip(all_axes, ascii_lowercase, PANELS, strict=False):
            for _, rows in blocks[blocks["metric"] == metric].groupby("bin"):
                _curve(axes, rows, palette.to_rgba(rows["t"].iloc[0]))
            axes.set(ylabel=label)
            if logarithmic:
                _logarithmic(axes)
            axes.set_title(f"({letter}) {title}", loc="left")
        all_axes[3].set_ylim(top=1.005)
        _sublayers(all_axes[4], blocks, palette)
        for axes in all_axes[:5]:
            axes.set(xlabel="block")
        _ticks(all_axes, int(blocks["x"].max()))
        if readable.empty:
            all_axes[5].set_visible(False)
        else:
            _readable(all_axes[5], readable)
        figure.colorbar(palette, ax=all_axes, label=T_LABEL, pad=0.01, aspect=40)
    return figure


def _ticks(all_axes: np.ndarray, depth: int) -> None:
    for axes in all_axes:
        axes.set_xlim((0.3 if axes is not all_axes[5] else -0.3), depth + 0.3)
        axes.set_xticks(range(1 if axes is not all_axes[5] else 0, depth + 1, -(-depth // 8)))
