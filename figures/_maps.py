"""Heat maps over t: a row a target, a block or a layer; cells of which nothing can be said are hatched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.patches import Patch
from numpy.typing import NDArray

HATCH: dict[str, Any] = {"hatch": "////", "edgecolor": "0.55", "lw": 0}
ROW = 0.17  # inches
MOST_NUMBERS = 10  # columns, beyond which numbers have no room


def edges_of(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Of the bins of t, which are adjacent."""
    bins = rows.drop_duplicates("bin").sort_values("bin")
    return np.append(bins["t_low"].to_numpy(), bins["t_high"].iloc[-1])


def by_bin(rows: pd.DataFrame, row: str, names: list[str], column: str) -> NDArray[Any]:
    """(names, bins) of a column; row: the column that holds the names."""
    return rows.pivot(index=row, columns="bin", values=column).reindex(names).to_numpy()


def heat(axes: Axes, edges: NDArray[Any], names: list[str], value: NDArray[Any], **colours: Any) -> QuadMesh:
    """A row a name, the first on top."""
    mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), value, rasterized=True, **colours)
    axes.set(yticks=np.arange(len(names)) + 0.5, ylim=(len(names), 0), xlim=(edges[0], edges[-1]))
    axes.set_yticklabels(names)
    axes.tick_params(axis="y", length=0)
    return mesh


def hatch(axes: Axes, edges: NDArray[Any], where: NDArray[np.bool_], face: str = "none") -> None:
    """where: (rows, columns) of a heat map. face: the colour below the lines."""
    rows, columns = np.nonzero(where)
    corners = [[(edges[j], i), (edges[j + 1], i), (edges[j + 1], i + 1), (edges[j], i + 1)] for i, j in zip(rows, columns, strict=True)]
    axes.add_collection(PolyCollection(corners, facecolor=face, **HATCH), autolim=False)


def hatched(label: str, face: str = "none") -> Patch:
    """Its entry in a legend."""
    return Patch(facecolor=face, label=label, **HATCH)


def as_text(value: NDArray[Any], form: str) -> NDArray[Any]:
    """As they are printed: "-.22", "+1.4", and "0" for what rounds to it; "" for NaN."""
    texts = [["" if np.isnan(x) else f"{x:{form}}".replace("0.", ".", 1 if abs(x) < 1 else 0) for x in row] for row in value]
    none = [["0" if text.strip("+-.0") == "" and text else text.replace("-", "\N{MINUS SIGN}") for text in row] for row in texts]
    return np.array(none)


def numbers(axes: Axes, edges: NDArray[Any], mesh: QuadMesh, texts: NDArray[Any], bold: NDArray[np.bool_] | None = None) -> None:
    """A text a cell, black or white by the colour below; none where there is no room for them. bold: the others are thin."""
    if len(edges) - 1 > MOST_NUMBERS:
        return
    values: NDArray[Any] = np.ma.getdata(np.ma.asarray(mesh.get_array())).reshape(texts.shape)
    for i, j in np.ndindex(texts.shape):
        red, green, blue, _ = mesh.cmap(mesh.norm(values[i, j]))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        look: dict[str, Any] = {"color": "white" if dark else "black", "fontweight": "bold" if bold is not None and bold[i, j] else "normal"}
        axes.text((edges[j] + edges[j + 1]) / 2, i + 0.52, str(texts[i, j]), ha="center", va="center", fontsize=5, **look)
