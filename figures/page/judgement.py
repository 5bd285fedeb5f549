"""The verdict on a run's alignment table, as `gsnr.verdict` gives it: its sentences, then the ranges behind them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gsnr import verdicts
from gsnr.figures.page.layout import Part, paragraphs
from gsnr.figures.page.listing import listing

READING = (
    "G-SNR = ||E g||² / tr Cov(g) of the per-sample gradient of one loss. At a perfectly learnt target it is 0, and a wrong target can score "
    "high: read a target against its controls, and rank targets only with projectors fitted alike on a backbone that none of them trained."
)
MARKS = (
    "Easy: a constant vector does nearly as well as the projector. Underfit: the projector does worse than a constant vector. Sure: found at 95 % "
    "for all cells of the table at once."
)


def judgement(folder: Path, run: str) -> list[Part]:
    """One part a checkpoint of the table; [] where none was measured. A table of which nothing can be said gives the reason."""
    if not (folder / verdicts.TABLE).is_file():
        return []
    cells, metrics = verdicts.read(folder)
    try:
        found = verdicts.each(cells, metrics)
    except ValueError as error:
        return [Part(f"{run}: no verdict", paragraphs(str(error)))]
    parts = []
    for one, checkpoint in zip(found, cells[["run", "checkpoint"]].drop_duplicates()["checkpoint"], strict=True):
        ranges: pd.DataFrame = one.to_frame()
        name = run if len(found) == 1 else f"{run}, checkpoint {checkpoint}"
        shown = ranges.drop(columns=["t_low", "t_high", "bins"])
        shown.insert(1, "t", [f"{r.t_low:.3g} to {r.t_high:.3g}" for r in one.ranges])
        body = paragraphs(*one.sentences, lead=True) + paragraphs(verdicts.CAVEAT) + listing(shown, f"{name} verdict", ranges)
        parts.append(Part(name, body + paragraphs(f"{one.title[0].upper()}{one.title[1:]}. {MARKS}")))
    return parts
