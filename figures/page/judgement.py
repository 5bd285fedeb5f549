"""The verdict on a run's alignment table, as `gsnr.verdict` gives it: its sentences, then the ranges behind them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gsnr import table, verdicts
from gsnr.figures.page.layout import Part, paragraphs
from gsnr.figures.page.listing import listing

READING = (
    "G-SNR = ||E g||² / tr Cov(g) of the per-sample gradient of one loss. At a perfectly learnt target it is 0, and a wrong target can score "
    "high: read a target against its controls, and rank targets only with projectors fitted alike on a backbone that none of them trained."
)
HEADINGS = {"t_low": "from t", "t_high": "to t", "easy": "a constant does", "underfit": "projector below a constant", "sure": "sure"}


def judgement(folder: Path, run: str) -> list[Part]:
    """One part a checkpoint of the table; [] where none was measured. A table of which nothing can be said gives the reason."""
    path, beside = folder / "alignment.parquet", folder / "alignment.metrics.parquet"
    if not path.is_file():
        return []
    cells = table.read(path, "alignment")
    metrics = table.read(beside) if beside.is_file() else None
    try:
        found = verdicts.each(cells, metrics)
    except ValueError as error:
        return [Part(f"{run}: no verdict", paragraphs(str(error)))]
    parts = []
    for one in found:
        ranges: pd.DataFrame = one.to_frame()
        name = one.title.partition(",")[0].removeprefix("verdict on ")
        shown = listing(ranges.rename(columns=HEADINGS), f"{name} verdict", ranges)
        about = f"{one.title}. Sure: found at 95 % for all cells of the table at once."
        parts.append(Part(name, paragraphs(*one.sentences, lead=True) + paragraphs(verdicts.CAVEAT) + shown + paragraphs(about)))
    return parts
