"""The contract test of a figure: what every file of that kind has to do, checked on small made-up tables."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr import plugins, table
from gsnr.figures import _alone, command
from gsnr.figures._examples import LABELS, table_for
from gsnr.figures.style import paper


def check(name: str) -> list[str]:
    """Draws the figure of that name. What was checked, a line each. Raises ValueError, naming the file, for what is broken."""
    path = plugins.get("figures", name).path
    try:
        figure = command.find(name)
        said = _constants(figure)
        with TemporaryDirectory() as folder:
            runs = _runs(figure, Path(folder))
            frame = command.table_of(runs, figure)
            said += [*_drawing(figure, frame), *_refusing(figure, frame), *_torchless(name, runs)]
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return said


def _name(figure: ModuleType) -> str:
    """The stem of the table it reads."""
    kind = getattr(figure, "KIND", "")
    return f"{figure.TABLE}.{kind}" if kind else figure.TABLE


def _constants(figure: ModuleType) -> list[str]:
    for constant in ("TABLE", "TITLE", "CAPTION"):
        if not getattr(figure, constant).strip():
            raise ValueError(f"{constant} is empty")
    if "\n" in figure.TITLE or figure.TITLE.endswith("."):
        raise ValueError("TITLE is a heading: one line, without a full stop at its end")
    if not figure.CAPTION.endswith("."):
        raise ValueError("CAPTION is plain sentences, which end with a full stop")
    kind, several = getattr(figure, "KIND", "samples"), getattr(figure, "SEVERAL_RUNS", False)
    if kind not in table.KINDS:
        raise ValueError(f"KIND {kind!r} does not exist; choose from {', '.join(table.KINDS)}")
    if not isinstance(several, bool):
        raise ValueError(f"SEVERAL_RUNS is {several!r}, not True or False")
    return [f"reads {_name(figure)}.parquet{' of several runs' if several else ''}, and has a title and a caption"]


def _runs(figure: ModuleType, folder: Path) -> list[Path]:
    """Run folders with made-up tables such as it reads."""
    runs = [folder / run for run in (("one-s0", "one-s1", "other") if getattr(figure, "SEVERAL_RUNS", False) else ("run",))]
    for run in runs:
        kind, rows = table_for(figure, _name(figure), run.name)
        table.write(run / "probes" / f"{_name(figure)}.parquet", kind, rows, {"labels": LABELS})
    return runs


def _draw(figure: ModuleType, frame: pd.DataFrame) -> Figure:
    try:
        drawn = figure.draw(frame)
    except Exception as error:
        raise ValueError(f"draw fails on a table of {figure.TABLE} ({type(error).__name__}: {error})") from error
    if not isinstance(drawn, Figure):
        raise ValueError(f"draw gives {type(drawn).__name__}, not a matplotlib Figure")
    return drawn


def _png(drawn: Figure) -> bytes:
    buffer = io.BytesIO()
    with paper():
        if (layout := drawn.get_layout_engine()) is not None:
            layout.execute(drawn)
            drawn.set_layout_engine(None)  # with one, savefig draws twice
        drawn.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue()


def _drawing(figure: ModuleType, frame: pd.DataFrame) -> list[str]:
    before = frame.copy(deep=True)
    drawn = _draw(figure, frame)
    if not frame.equals(before):
        raise ValueError("draw changes the table that it is given")
    visible = [axes for axes in drawn.axes if axes.get_visible()]
    if not visible:
        raise ValueError("draw gives a figure without axes")
    for i, axes in enumerate(visible, 1):
        if not axes.images and not _labelled(axes, "x") | _labelled(axes, "y"):
            raise ValueError(f"axes {i} of {len(visible)} have no label; say what x and y are, or show an image")
        if not axes.images and axes.get_label() != "<colorbar>":
            for which in "xy":
                if not _labelled(axes, which):
                    raise ValueError(f"axes {i} of {len(visible)} have no label of {which}, nor have axes that share it in line with them")
    if _png(drawn) != _png(_draw(figure, frame)):
        raise ValueError("draw gives two pictures of one table; it must not depend on chance or on what was drawn before")
    return [f"draws {len(frame)} rows on {len(visible)} labelled axes, with a target that no one knows; twice the same picture"]


def _labelled(axes: Axes, which: str) -> bool:
    """Whether axes, or visible ones that share x (y) in the same column (row), have a label of x (y)."""
    shared = axes.get_shared_x_axes() if which == "x" else axes.get_shared_y_axes()
    for one in [axes, *shared.get_siblings(axes)]:
        here, there = axes.get_subplotspec(), one.get_subplotspec()
        if one is not axes and (here is None or there is None):
            continue
        if here is not None and there is not None and (here.colspan != there.colspan if which == "x" else here.rowspan != there.rowspan):
            continue
        if one.get_visible() and (one.get_xlabel() if which == "x" else one.get_ylabel()).strip():
            return True
    return False


def _refusing(figure: ModuleType, frame: pd.DataFrame) -> list[str]:
    """A table without rows, and one whose rows say nothing that the figure knows."""
    unknown = frame.assign(**{column: "nothing" for column in ("group", "metric") if column in frame})
    useless = {"a table without rows": frame.iloc[:0]} | ({} if "red" in frame else {"a table of unknown groups and metrics": unknown})
    for what, rows in useless.items():
        try:
            figure.draw(rows)
        except ValueError as error:
            if not _own(error, figure):
                raise ValueError(f"of {what} draw raises an error that is not its own ({error}); say in one line what is missing") from error
        except Exception as error:
            raise ValueError(f"of {what} draw raises {type(error).__name__} ({error}), not a ValueError that says what is missing") from error
        else:
            raise ValueError(f"of {what} draw gives a figure, and no ValueError that says what is missing")
    return [f"refuses {' and '.join(useless)}"]


def _own(error: ValueError, figure: ModuleType) -> bool:
    """Whether it was raised on purpose: by the figure or by ours, in one line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return (raised == figure.__name__ or raised.startswith("gsnr.")) and len(str(error).splitlines()) == 1


def _torchless(name: str, runs: list[Path]) -> list[str]:
    """In a process of its own, where nothing else has imported torch."""
    if why := _alone.wrong(name, runs):
        raise ValueError(f"drawn in a process of its own: {why}")
    return ["imports no torch"]
