"""Where the values of a figure stand in its picture, so that the page can say each of them under the pointer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter

MOST = 400  # values of a figure; one with more has none said
OF_A_LINE = 60  # points of a curve that are said
RADIUS = 0.05  # inches, around a point


@dataclass(frozen=True)
class Mark:
    """A rectangle in inches from the figure's lower left, and what it says."""

    x: float
    y: float
    width: float
    height: float
    text: str


def marks(figure: Figure) -> list[Mark]:
    """Of curves, bars and heat maps, once the figure has been laid out; [] where they are too many."""
    found = [mark for axes in figure.axes if axes.get_visible() for mark in _of_axes(axes)]
    return found if len(found) <= MOST else []


def _of_axes(axes: Axes) -> Iterator[Mark]:
    taken: set[Any] = set()
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer) and container[0] is not None:
            taken.add(container[0])
            yield from _points(axes, container[0], container.get_label(), _ends(container))
        if isinstance(container, BarContainer):
            for bar in container.patches:
                value = bar.get_height() if container.orientation == "vertical" else bar.get_width()
                yield _mark(axes, bar.get_window_extent().extents, f"{_named(container.get_label())}{value:.3g}")
    for line in axes.lines:
        if line not in taken and not str(line.get_label()).startswith("_") and line.get_transform() == axes.transData:
            yield from _points(axes, line, line.get_label(), {})
    for mesh in axes.collections:
        if isinstance(mesh, QuadMesh):
            yield from _mesh(axes, mesh)


def _named(label: Any) -> str:
    """ "AHPA: ", without marks of mathematics; "" for what has no label of its own."""
    text = re.sub(r"[$\\{}]", "", str(label)).strip()
    return "" if not text or text.startswith("_") else f"{text}: "


def _said(axis: Axis, value: float) -> str:
    """A place on an axis: its category where it has them, else the number."""
    formatter = axis.get_major_formatter()
    if isinstance(formatter, FixedFormatter) and len(places := np.asarray(axis.get_majorticklocs())):
        nearest = int(abs(places - value).argmin())
        if abs(places[nearest] - value) < 0.5 and nearest < len(formatter.seq):
            return " ".join(str(formatter.seq[nearest]).split())
    return f"{value:.3g}"


def _ends(container: ErrorbarContainer) -> dict[int, str]:
    """point -> " [low, high]", of the bars along y, or along x where those are all."""
    if not container[2]:
        return {}
    along = 1 if container.has_yerr else 0
    segments = container[2][-1].get_segments()
    return {i: f" [{one[0][along]:.3g}, {one[-1][along]:.3g}]" for i, one in enumerate(segments) if len(one)}


def _points(axes: Axes, line: Any, label: Any, ends: dict[int, str]) -> Iterator[Mark]:
    xy: Any = np.ma.filled(np.ma.asarray(line.get_xydata(), dtype=float), np.nan)
    dpi = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    for i in range(0, len(xy), -(-len(xy) // OF_A_LINE) or 1):
        place = axes.transData.transform(xy[i])
        if np.isfinite(place).all() and axes.bbox.contains(*place):
            r = RADIUS * dpi
            text = f"{_named(label)}{_said(axes.xaxis, xy[i][0])}, {_said(axes.yaxis, xy[i][1])}{ends.get(i, '')}"
            yield _mark(axes, (place[0] - r, place[1] - r, place[0] + r, place[1] + r), text)


def _mesh(axes: Axes, mesh: QuadMesh) -> Iterator[Mark]:
    corners: Any = mesh.get_coordinates()
    values: Any = mesh.get_array()
    if np.ndim(values) != 2:
        return
    values = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            low, high = corners[row, column], corners[row + 1, column + 1]
            middle = (low + high) / 2
            extents = np.concatenate([axes.transData.transform(low), axes.transData.transform(high)])
            yield _mark(axes, extents, f"{_said(axes.xaxis, middle[0])}, {_said(axes.yaxis, middle[1])}: {value:.3g}")


def _mark(axes: Axes, extents: Any, text: str) -> Mark:
    x0, y0, x1, y1 = (float(value) / axes.get_figure(root=True).dpi for value in extents)  # type: ignore[union-attr]
    return Mark(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0), text)
