"""`gsnr tables --summary`: many targets of one alignment table, a row each.

What it says of a target: G-SNR in both halves of the trajectory; in how many bins it is above its floor, and in how many its shuffled control holds
0; its angle to denoising in the first bin. Targets have projectors that were fitted alike, and stand from the highest at t < 0.5 down. Losses that
have no projector are of another kind, and stand last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gsnr.figures.fig_direction import COSINE, resolved_only

KEY = ["run", "checkpoint", "vae", "target", "projector"]
FITTED, BARE = "fit", "none"  # projectors
PARTS = ("t < 0.5", "t > 0.5")


def _row(mine: pd.DataFrame, control: pd.DataFrame) -> dict[str, Any]:
    """What the cells of a target and of its shuffled control say, bins counted; NaN for what was not measured."""
    first = resolved_only(mine.sort_values("bin").head(1)).iloc[0]
    known = control[control["gsnr_low"].notna()]
    above, below = (known["gsnr_low"] > 0).sum(), (known["gsnr_high"] < 0).sum()
    floored = mine["floor"].notna().any()
    return {
        "bins": len(mine),
        "above floor": mine["above_floor"].astype(bool).sum() if floored else np.nan,
        "control bins": len(control),
        "control holds 0": len(known) - above - below if len(known) else np.nan,
        "control above 0": above,
        "control below 0": below,
        "cosine up to t": first["t_high"],
        **dict(zip(("cosine", "cosine low", "cosine high"), first[list(COSINE)], strict=True)),
    }


def summarised(found: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """found: `tables.trajectory` of the cells, which are of one group. Raises ValueError where no projector was fitted."""
    rows = found[(found["control"] == "none") & found["projector"].isin((FITTED, BARE))]
    if rows.empty:
        raise ValueError("--summary: the table has no projectors that were fitted alike; measure again with --projector fit")
    by_key = dict(list(cells.groupby([*KEY, "control"])))
    said = []
    for row in rows.to_dict("records"):
        key = tuple(row[name] for name in KEY)
        said.append(row | _row(by_key[(*key, "none")], by_key.get((*key, "shuffled"), cells.head(0))))
    together = pd.DataFrame(said)
    first = [part for part in PARTS if part in together][:1]
    by = ["projector", *first]  # fit, none
    return together.sort_values(by, ascending=[True, False][: len(by)], kind="stable", ignore_index=True)


def _interval(row: dict[str, Any], column: str, form: str) -> str:
    if np.isnan(row[column]):
        return ""
    return f"{row[column]:{form}} [{row[f'{column} low']:{form}}, {row[f'{column} high']:{form}}]"


def _control(row: dict[str, Any]) -> str:
    if not row["control bins"]:
        return ""
    if np.isnan(row["control holds 0"]):
        return "has no gradient"
    off = [f"{word} it in {row[f'control {word} 0']}" for word in ("above", "below") if row[f"control {word} 0"]]
    return ", ".join([f"{row['control holds 0']:.0f} of {row['control bins']}", *off])


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """The same with one text a cell; runs and VAEs only where there are several. A cosine is left out where nothing can be said of it."""
    rows = [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]
    shown = pd.DataFrame(index=found.index)
    for column in ("run", "vae"):
        if found[column].nunique() > 1:
            shown[column] = found[column]
    shown["target"] = [row["name"] + (" (no projector)" if row["projector"] == BARE else "") for row in rows]
    for part in PARTS:
        if part in found:
            shown[part] = [_interval(row, part, ".1f") for row in rows]
    shown["bins above the floor"] = ["" if np.isnan(row["above floor"]) else f"{row['above floor']:.0f} of {row['bins']}" for row in rows]
    shown["its shuffled control holds 0"] = [_control(row) for row in rows]
    shown[f"cosine to denoising, t < {rows[0]['cosine up to t']:g}"] = [_interval(row, "cosine", ".2f") for row in rows]
    return shown
