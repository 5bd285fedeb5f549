"""A stranger's figure: what the stranger's probe measured, over t."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures.style import COLUMN, T_LABEL, paper
from gsnr.table import METRIC_COLUMNS, NAN

TABLE = "token_norm"
TITLE = "Norm of tokens"
CAPTION = "Mean norm of tokens at the aligned block over t, with 95 % intervals over images."


def example() -> list[dict[str, Any]]:
    """A table such as the stranger's probe makes, for the contract test."""
    plain = {"string": "none", "int64": 1, "float64": NAN}
    row = {column: plain[dtype] for column, dtype in METRIC_COLUMNS.items()} | {"probe": TABLE, "metric": "token_norm"}
    bins = ((0, 0.0, 0.5, 2.0), (1, 0.5, 1.0, 3.0))
    return [row | {"bin": i, "t_low": a, "t_high": b, "value": x, "low": x - 0.2, "high": x + 0.2} for i, a, b, x in bins]


def draw(metrics: pd.DataFrame) -> Figure:
    rows = metrics[metrics["metric"] == "token_norm"].sort_values("bin")
    if rows.empty:
        raise ValueError("fig_token_norm: the table has no rows 'token_norm'; measure again with --probe token_norm")
    with paper():
        figure = Figure(figsize=(COLUMN, 2.3), layout="constrained")
        axes = figure.subplots()
        errors = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        axes.errorbar((rows["t_low"] + rows["t_high"]) / 2, rows["value"], errors, marker="o")
        axes.set(xlim=(0, 1), xlabel=T_LABEL, ylabel="norm of a token")
    return figure
