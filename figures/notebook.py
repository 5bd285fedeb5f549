"""What the notebooks show: a figure with its alternative text, and tables that neither wrap nor say a target's internal name."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from gsnr.figures.style import paper, placed
from gsnr.figures.targets import labels_of
from gsnr.table import target_name

DPI = 150


@dataclass(frozen=True)
class Shown:
    """A picture (PNG, base64) that a notebook displays with its text for those who do not see it."""

    png: str
    alt: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict[str, str], dict[str, Any]]:
        return {"image/png": self.png, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def shown(figure: Figure, alt: str) -> Shown:
    buffer = io.BytesIO()
    with paper():
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches=placed(figure))
    return Shown(base64.b64encode(buffer.getvalue()).decode(), alt)


def show(figure: ModuleType, frame: pd.DataFrame) -> Shown | str:
    """A figure of `gsnr.figures`, drawn of a table; where the table has nothing to draw, the reason."""
    try:
        return shown(figure.draw(frame), figure.TITLE)
    except ValueError as error:
        return f"not drawn: {error}"


def laid_out(frame: pd.DataFrame) -> Styler:
    """A table without its index whose cells keep to one line; the first column to the left, the others to the right."""
    right: dict[str, Any] = {"white-space": "nowrap", "text-align": "right"}
    left: dict[str, Any] = {"text-align": "left"}
    heads: Any = [
        {"selector": f"th{which}", "props": f"white-space: nowrap; text-align: {side}"} for which, side in (("", "right"), (".col0", "left"))
    ]
    styled = frame.style.hide(axis="index").format(precision=3, na_rep="").set_table_styles(heads)
    return styled.set_properties(**right).set_properties(subset=list(frame.columns[:1]), **left)


def by_bin(cells: pd.DataFrame, group: str = "all") -> pd.DataFrame:
    """One row a bin of t, one column a target: B x G-SNR [95 % interval], with "." where it is not detected and "-" where it is, but not above its
    floor."""
    here, labels = cells[cells["group"] == group], labels_of(cells)
    shown: dict[str, dict[str, str]] = {}
    for row in here.sort_values("bin", kind="stable").to_dict("records"):
        value, low, high = (row["batch_ref"] * row[column] for column in ("gsnr", "gsnr_low", "gsnr_high"))
        floored = row["floor"] == row["floor"] and not row["above_floor"]
        mark = " ." if row["below_detection"] else " -" if floored else ""
        name = target_name(row["target"], row["control"], row["projector"], labels=labels)
        shown.setdefault(name, {})[f"{row['t_low']:g} to {row['t_high']:g}"] = f"{value:.1f} [{low:.1f}, {high:.1f}]{mark}"
    return pd.DataFrame(shown).rename_axis("t").reset_index()


def of_targets(frame: pd.DataFrame, *targets: str) -> pd.DataFrame:
    """The rows of these targets and their controls."""
    return frame[frame["target"].isin(targets)]


def settings(provenance: Mapping[str, Any]) -> pd.DataFrame:
    """One row a setting of the probe, the first checkpoint above them."""
    one = provenance["checkpoints"][0]
    of_probe = {key: value for key, value in provenance["settings"].items() if key != "checkpoints"}
    values = {"checkpoint": one["run"], "step": one["step"]} | of_probe
    return pd.DataFrame({"setting": list(values), "value": [_plain(value) for value in values.values()]})


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def weights(router: pd.DataFrame, times: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> pd.DataFrame:
    """The router's weights at the measured times next to these: one row a group or a layer. router: a table `router`."""
    now = router[(router["target"] == "router") & ((router["metric"] == "beta") | router["metric"].str.startswith("alpha_"))]
    at = now.pivot_table(index=["metric", "group"], columns="t_low", values="value", sort=False)
    there = [float(t) for t in at.columns]
    measured = sorted({min(there, key=lambda t: abs(t - time)) for time in times})
    shown = at[measured].rename(columns=lambda t: f"t = {t:g}").reset_index()
    of_layer = shown["group"].str.contains(":")
    named = shown["group"].where(~of_layer, "layer " + shown["group"].str.partition(":")[0])
    kinds = shown["metric"].str.replace("alpha_", "alpha ")
    return shown.drop(columns=["metric", "group"]).assign(weight=kinds + ", " + named)[["weight", *shown.columns[2:]]]
