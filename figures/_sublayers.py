"""Who reads whom in a `residual_stream` table: sublayers (attention and MLP of each block, then the final layer) by what earlier ones wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from numpy.typing import NDArray

from gsnr.figures._maps import by_bin, edges_of, hatch, heat
from gsnr.figures.style import T_LABEL

MOST_NAMES = 14  # rows that have a name each
NO_SOURCE = "0.93"  # the colour of what is not read


def depth_of(rows: pd.DataFrame) -> int:
    """Blocks."""
    return int(rows["group"].str.extract(r"(\d+)")[0].dropna().astype(int).max())


def number_of(name: str, depth: int) -> int:
    """Of what reads or writes: 0 the embedding, 1 to L the sublayers, L + 1 the final layer."""
    if name in ("embedding", "final"):
        return 0 if name == "embedding" else 2 * depth + 1
    kind, block = name.split()
    return 2 * int(block) - (kind == "attention")


def matrix(rows: pd.DataFrame, depth: int) -> NDArray[np.float64]:
    """[l - 1, i]: the mean over t of what reader l has of source i; NaN where it does not read it. A chunk is one source, at all its sublayers."""
    found = np.full((2 * depth + 1, 2 * depth + 1), np.nan)
    readers = rows.loc[rows["target"] == "chunk 1", "group"].map(lambda name: number_of(name, depth))
    chunk = int(readers.min()) - 1 if len(readers) else 0
    for row in rows.groupby(["group", "target"], sort=False)["value"].mean().reset_index().to_dict("records"):
        source = row["target"]
        if source.startswith("chunk"):
            last = int(source.split()[1]) * chunk
            at = slice(last - chunk + 1, last + 1)
        else:
            at = slice(number_of(source, depth), number_of(source, depth) + 1)
        found[number_of(row["group"], depth) - 1, at] = row["value"]
    return found


def map_of(axes: Axes, value: NDArray[np.float64], depth: int, **colours: Any) -> QuadMesh:
    """value: `matrix`, without the last row where the final layer reads no sources."""
    rows, columns = value.shape
    axes.set_facecolor(NO_SOURCE)
    mesh = axes.pcolormesh(np.arange(columns + 1), np.arange(rows + 1), value, rasterized=True, **colours)
    every = range(1, depth + 1, -(-depth // 8))
    final = rows > 2 * depth
    axes.set_xticks([0.5, *(2 * k for k in every)], ["e", *map(str, every)])
    axes.set_yticks([*(2 * k - 1 for k in every), *([rows - 0.5] if final else [])], [*map(str, every), *(["final"] if final else [])])
    axes.set(ylim=(rows, 0), xlabel="written by block (e: embedding)", ylabel="read by block")
    axes.tick_params(length=0)
    for at in range(1, depth):
        axes.axhline(2 * at, color="white", lw=0.4)
        axes.axvline(2 * at + 1, color="white", lw=0.4)
    return mesh


def over_t(axes: Axes, rows: pd.DataFrame, column: str, unsure: bool, **colours: Any) -> QuadMesh:
    """A row a source (or reader), the first on top. rows: of one reader (or of all); unsure: hatch cells whose interval holds 0."""
    names = list(dict.fromkeys(rows[column]))
    mesh = heat(axes, edges_of(rows), names, by_bin(rows, column, names, "value"), **colours)
    labels = [name.replace("mlp", "MLP") for name in names]
    if unsure:
        low, high = (by_bin(rows, column, names, end) for end in ("low", "high"))
        hatch(axes, edges_of(rows), (low <= 0) & (high >= 0))
    step = -(-len(names) // MOST_NAMES)
    axes.set_yticks(np.arange(0, len(names), step) + 0.5, labels[::step])
    axes.set(xlabel=T_LABEL)
    return mesh
