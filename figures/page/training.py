"""How a run was trained: its samples, and its losses over the steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gsnr import files
from gsnr.figures.page.layout import Part, paragraphs
from gsnr.figures.page.pictures import drawn, photographed
from gsnr.figures.style import COLOURS, PAGE, paper

LOG = "metrics.jsonl"
LOSSES = {"velocity": "denoising loss", "align": "alignment loss"}  # a log without them has `loss` alone


def samples(run: Path) -> list[Part]:
    """The newest of a run's grids of samples: figures/samples.png, or else the last of samples/; [] where there is none."""
    found = [path for path in (run / "figures" / "samples.png", *sorted(run.glob("samples/*.png"), reverse=True)) if path.exists()]
    if not found:
        return []
    name = found[0].relative_to(run)
    try:
        body = photographed(found[0], f"Grid of images drawn from run {run.resolve().name}", f"Drawn from the model ({name}).")
    except ValueError as error:
        body = paragraphs(str(error))
    return [Part("Samples", body)]


def _line(text: bytes) -> dict[str, Any] | None:
    """A line of the log; None for a damaged one."""
    try:
        line = files.parse_json(text)
        numbers = {name: float(line[name]) for name in ("step", *LOSSES, "loss") if name in line}
    except (ValueError, TypeError, OverflowError, KeyError):
        return None
    return numbers if "step" in numbers and all(map(math.isfinite, numbers.values())) else None


def read(path: Path) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """What a loss is called -> (step, value) pairs, by step; and how many lines are damaged, and left out. Raises ValueError for what is no file."""
    files.require_regular(path)
    lines = [_line(text) for text in path.read_bytes().splitlines()]
    good = sorted((line for line in lines if line is not None), key=lambda line: line["step"])
    names = {key: name for key, name in LOSSES.items() if any(line.get(key) for line in good)} or {"loss": "loss"}
    curves = {name: [(line["step"], line[key]) for line in good if key in line] for key, name in names.items()}
    return {name: curve for name, curve in curves.items() if curve}, len(lines) - len(good)


def draw(curves: dict[str, list[tuple[float, float]]]) -> Figure:
    """One panel a loss; its axis is logarithmic where it falls to less than a third."""
    with paper():
        figure = Figure(figsize=(PAGE, 2.2), layout="constrained")
        for i, (axes, (name, curve)) in enumerate(zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True)):
            steps, values = zip(*curve, strict=True)
            axes.plot(steps, values, color=COLOURS[i], label=name)
            axes.set(xlabel="training step", ylabel=name)
            if 0 < 3 * min(values) < values[0]:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def losses(run: Path) -> list[Part]:
    """[] for a run without a log, such as a folder of tables."""
    if not (run / LOG).exists():
        return []
    try:
        curves, damaged = read(run / LOG)
    except ValueError as error:
        return [Part("Losses", paragraphs(str(error)))]
    if not curves:
        return [Part("Losses", paragraphs(f"{LOG}: has no line with a step and a loss."))]
    ends = "; ".join(f"{name} {c[0][1]:.3g} at step {c[0][0]:g}, {c[-1][1]:.3g} at step {c[-1][0]:g}" for name, c in curves.items())
    caption = f"Means over the steps between lines of {LOG}. {ends}." + (f" {damaged} damaged lines are left out." if damaged else "")
    return [Part("Losses", drawn(draw(curves), f"Losses over training: {ends}", caption))]
