"""Is there a handover? Beta of the deep group over t at steps of training, beside where it ends; one panel a run."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsnr.estimates import Array
from gsnr.figures._curves import grid
from gsnr.figures.fig5_router import WEIGHT_LIMITS
from gsnr.figures.style import GREY, LINES, PAGE, paper

TABLE = "router"
SEVERAL_RUNS = True
TITLE = "Is there a handover? Beta of the deep group over t, while the router learns and at the end"
CAPTION = (
    "One panel a run. Thin, dark to light: so many steps after the router first moved; thick black: the last logged step; dotted grey: where it "
    "started. Above each panel: beta at t = 0.9 less beta at t = 0.1, at the end, and the largest on the way. A curve that leaves the grey line "
    "and lies flat at the end was a transient."
)
COLUMNS, MOST = 3, 24
LOW_T, HIGH_T = 0.1, 0.9
AFTER = (5, 10, 20, 50, 100, 200)  # steps after the router first moved
MOVED = 1e-3  # of a weight that has moved
SETTLING = 50  # steps at the end over which a curve at rest does not move


def curves(metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """run -> beta of the deep group by logged step (rows) and t (columns). Raises ValueError for a table without any."""
    beta = metrics[(metrics["target"] == "router_log") & (metrics["metric"] == "beta") & (metrics["group"] == "deep")]
    if beta.empty:
        raise ValueError("fig_handover: the table holds no logged beta of group deep; measure runs of a router with --probe router")
    return {str(run): rows.pivot_table(index="step", columns="t_low", values="value") for run, rows in beta.groupby("run", sort=False)}


def _at(curve: pd.DataFrame, t: float) -> Array:
    """Beta over the logged steps at the time next to t."""
    values: Array = curve.to_numpy()[:, abs(curve.columns.to_numpy() - t).argmin()]
    return values


def released(curve: pd.DataFrame) -> int:
    """The last logged step before beta moves; the last of all where it never does."""
    values = curve.to_numpy()
    moved = abs(values - values[0]).max(axis=1) > MOVED
    return int(curve.index[moved.argmax() - 1 if moved.any() else -1])


def verdicts(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row a run, from a `router` table.

    step: the last. low_t, high_t: beta deep there at t = 0.1 and 0.9. difference: high_t - low_t. largest, largest_at: that
    of largest absolute value on the way, and its step. moving: how far beta was at any t from where it ended, in the last 50 steps. slope: the
    largest beta (1 - beta) over t at the end, of which every gradient of the choice is a multiple: at 0 a router is stuck.
    """
    rows = []
    for run, curve in curves(metrics).items():
        steps, values, low, high = curve.index.to_numpy(), curve.to_numpy(), _at(curve, LOW_T), _at(curve, HIGH_T)
        largest = abs(high - low).argmax()
        settling = values[steps >= steps[-1] - SETTLING]
        ends: dict[str, Any] = {"run": run, "step": steps[-1], "low_t": low[-1], "high_t": high[-1], "difference": high[-1] - low[-1]}
        way = {"largest": (high - low)[largest], "largest_at": steps[largest]}
        moving = abs(settling - values[-1]).max() if steps[0] <= steps[-1] - SETTLING else float("nan")
        rows.append(ends | way | {"moving": moving, "slope": (values[-1] * (1 - values[-1])).max()})
    return pd.DataFrame(rows)


def _panel(axes: Axes, curve: pd.DataFrame, start: int) -> None:
    colours = mpl.colormaps["cividis"]
    for i, after in enumerate(AFTER):
        if start + after in curve.index and start + after < curve.index[-1]:
            style: dict[str, Any] = {"color": colours(i / len(AFTER)), "ls": LINES[i % len(LINES)], "lw": 0.9}
            axes.plot(curve.columns, curve.loc[start + after], label=f"+{after} steps", **style)
    axes.plot(curve.columns, curve.iloc[-1], color="black", lw=1.8, label="end", zorder=3)
    axes.plot(curve.columns, curve.iloc[0], color=GREY, lw=0.6, ls=(0, (1, 2)), zorder=0)
    axes.set(xlim=(0, 1), ylim=WEIGHT_LIMITS)


def draw(metrics: pd.DataFrame) -> Figure:
    """metrics: the `router` tables of the runs, one after another. Raises ValueError for tables without a logged beta, or of too many runs."""
    found = curves(metrics)
    if len(found) > MOST:
        raise ValueError(f"fig_handover: {len(found)} runs, and room for {MOST}; name fewer with --run")
    said = verdicts(metrics).set_index("run")
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    with paper():
        figure = Figure(figsize=(PAGE, 0.5 + 1.7 * rows), layout="constrained")
        panels = grid(figure, len(found), columns, sharey=True)
        for i, (panel, (run, curve)) in enumerate(zip(panels, found.items(), strict=True)):
            _panel(panel, curve, released(curve))
            one = said.loc[run]
            panel.set_title(f"({ascii_lowercase[i]}) {run}\n{one['difference']:+.2f}, largest {one['largest']:+.2f}", loc="left")
        for panel in panels[::columns]:
            panel.set_ylabel(r"$\beta$ deep")
        handles: dict[Any, Any] = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        order = [label for label in (*(f"+{after} steps" for after in AFTER), "end") if label in handles]
        figure.legend([handles[label] for label in order], order, loc="outside lower center", ncols=len(order))
    return figure
