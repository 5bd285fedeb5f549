"""A stranger's figure: what the stranger's probe measured, over t."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from gsnr.figures.style import COLUMN, T_LABEL, paper

TABLE = "token_norm"
KIND = ""
TITLE = "Norm of tokens"
CAPTION = "Mean norm of tokens at the aligned block over t, with 95 % intervals over images."


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
