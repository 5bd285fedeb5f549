"""`gsnr probe --check`: does a conclusion hold when the measurement is made otherwise? Half and twice the fit, another seed, other images.

Each repetition is a table of its own in OUT/check; what became of each cell (target, control, projector, bin; group "all") is one more table:

    kept_resolution   share of the repetitions in which the cell is detected, or not, and above its floor, or not, as at first
    kept_sign         ... in which cos_denoise has the sign that it had, of those in which the mean is detected; NaN where it was not at first
    kept_rank         ... in which the target has its place among the targets of its projector, by gsnr; NaN for controls

Half and twice the fit are samples of a ridge regression; of a projector that descends they are the most steps it may take, and one that converges
in fewer is the same fit.
"""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from gsnr import table
from gsnr.probes.common.measuring import Measurement
from gsnr.probes.common.options import ProbeOptions
from gsnr.table import NAN

CELL = ["run", "checkpoint", "vae", "target", "control", "projector", "bin"]
KEPT = ("kept_resolution", "kept_sign", "kept_rank")


def repetitions(options: ProbeOptions, heldout: int) -> dict[str, ProbeOptions]:
    """name -> the options of a repetition. heldout: images there are; with too few, no other images are measured."""
    has = {f.name for f in fields(options)}
    made: dict[str, ProbeOptions] = {}
    if "fit_samples" in has:
        for name, factor in (("half the fit", 0.5), ("twice the fit", 2.0)):
            made[name] = replace(options, **{key: max(1, int(getattr(options, key) * factor)) for key in ("fit_samples", "fit_steps")})
    made["another seed"] = replace(options, seed=options.seed + 1)
    after = options.first_image + options.n_images
    if after + options.n_images <= heldout:
        made["other images"] = replace(options, first_image=after)
    return made


def measurements(one: Measurement) -> dict[str, Measurement]:
    """name -> the repetition of a measurement, into a folder of its own."""
    heldout = min(subject.splits["heldout"].size for subject in one.subjects)
    made = repetitions(one.options, heldout)
    return {name: replace(one, options=options, out=one.out / "check" / name.replace(" ", "-")) for name, options in made.items()}


def _seen(cells: pd.DataFrame) -> pd.DataFrame:
    """What is compared of each cell."""
    here = cells[cells["group"] == "all"].set_index(CELL)
    detected = ~here["below_detection"].astype(bool)
    true = here.index.get_level_values("control") == "none"
    rank = here["gsnr"].where(true).groupby(["run", "checkpoint", "vae", "projector", "bin"]).rank(ascending=False)
    resolution = detected.astype(int) + here["above_floor"].astype(int)
    return pd.DataFrame({"kept_resolution": resolution, "kept_sign": np.sign(here["cos_denoise"]).where(detected), "kept_rank": rank})


def compare(first: pd.DataFrame, again: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a cell and repetition: whether resolution, sign and rank are as at first (1, 0, or NaN where there is none)."""
    base = _seen(first)
    parts = []
    for name, cells in again.items():
        found = _seen(cells).reindex(base.index)
        kept = (found == base).astype(float).where(base.notna() & found.notna())
        parts.append(kept.reset_index().assign(repetition=name))
    return pd.concat(parts, ignore_index=True)


def rows(first: pd.DataFrame, compared: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of kind "metrics": the shares over repetitions."""
    shares = compared.groupby(CELL, sort=False)[list(KEPT)].mean().reset_index()
    keys = [column for column in table.METRIC_COLUMNS if column in first]
    cells = first[first["group"] == "all"][keys].merge(shares, on=CELL)
    made = []
    for row, metric in product(cells.to_dict("records"), KEPT):
        made.append({key: row[key] for key in keys} | {"metric": metric, "value": float(row[metric]), "low": NAN, "high": NAN})
    return made


def write(one: Measurement, repeated: dict[str, Measurement]) -> str:
    """Writes OUT/PROBE.check.parquet from the tables on disk; what it says, as text."""
    first = table.read(one.path)
    compared = compare(first, {name: table.read(other.path) for name, other in repeated.items()})
    path = one.out / f"{one.name}.check.parquet"
    table.write(path, "metrics", rows(first, compared), {"settings": one.settings, "repetitions": list(repeated), "labels": first.attrs["labels"]})
    return f"{path}\n{_text(first, compared)}"


def _text(first: pd.DataFrame, compared: pd.DataFrame) -> str:
    """How many bins keep what, per target, and which repetition changed the most."""
    labels = first.attrs["labels"]
    lines = [f"of each target's bins, those that are the same in every repetition ({', '.join(dict.fromkeys(compared['repetition']))}):"]
    lines.append(f"  {'target':38}{'resolution':>12}{'sign':>8}{'rank':>8}   changes")
    for which, of_target in compared.groupby(["target", "control", "projector"], sort=False):
        all_kept = of_target.groupby("bin")[list(KEPT)].min()
        counts = [f"{int(all_kept[k].sum())}/{int(all_kept[k].notna().sum())}" for k in KEPT]
        changed = of_target[(of_target[list(KEPT)] == 0).any(axis=1)].groupby("repetition", sort=False).size()
        said = ", ".join(f"{name} {count}" for name, count in changed.items())
        name = table.target_name(*map(str, which), labels=labels)
        lines.append(f"  {name:38}{counts[0]:>12}{counts[1]:>8}{counts[2]:>8}   {said}")
    return "\n".join(lines)
