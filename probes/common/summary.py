"""What the probe command prints at its end, from tables. Targets are called as the table's attrs["labels"] say. Never imports torch."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd

from gsnr.table import EASY, target_name


def _mark(row: dict[Any, Any]) -> str:
    """What a cell's number is worth."""
    if row["below_detection"]:
        return "."
    return "u" if row["underfit"] else " " if row["above_floor"] or row["floor"] != row["floor"] else "-"


def summary(cells: pd.DataFrame, group: str = "all") -> str:
    """G-SNR per bin (rows) and target (columns) as text: B * gsnr with its 95 % interval and a mark; the floor of the first target last."""
    here = cells[cells["group"] == group]
    batch_ref = int(here["batch_ref"].iloc[0])
    several, labels = len(here[["run", "checkpoint"]].drop_duplicates()) > 1, cells.attrs.get("labels", {})
    columns: dict[str, list[str]] = {"t": []}

    def text(values: list[float]) -> str:
        value, low, high = (batch_ref * x for x in values)
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"

    for (t_low, t_high), rows in here[here["control"] == "none"].groupby(["t_low", "t_high"]):
        columns["t"].append(f"{t_low:.2f}-{t_high:.2f}")
        floors: dict[str, str] = {}
        for row in rows.to_dict("records"):
            name = target_name(row["target"], row["control"], row["projector"], labels=labels)
            where = f"{row['run']}/{row['checkpoint']}: " if several else ""
            columns.setdefault(where + name, []).append(text([row[x] for x in ("gsnr", "gsnr_low", "gsnr_high")]) + _mark(row))
            if row["projector"] == "fit" and f"{where}floor" not in floors:
                known = row["floor"] == row["floor"]
                floors[f"{where}floor"] = text([row[x] for x in ("floor", "floor_low", "floor_high")]) + " " if known else "none "
        for name, floor in floors.items():
            columns.setdefault(name, []).append(floor)
    columns = {name: texts for name, texts in columns.items() if set(texts) != {"none "}}
    widths = {name: max(map(len, [name, *texts])) + 2 for name, texts in columns.items()}
    lines = ["".join(f"{name:>{width}}" for name, width in widths.items())]
    lines += ["".join(f"{text:>{width}}" for text, width in zip(row, widths.values(), strict=True)) for row in zip(*columns.values(), strict=True)]
    head = f"{batch_ref} x G-SNR of group {group!r}, n = {int(here['n'].iloc[0])}, 95 % interval; floor: the first target's controls"
    marks = "'.' below detection; '-' detected, but not above its floor; 'u' the projector reaches less than a constant"
    return "\n".join([head, marks, *lines])


def _fits(notes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> how its projector was fitted, wherever in the notes."""
    found = dict(notes.get("projector_fit", {}))
    for name, value in notes.items():
        if isinstance(value, dict) and name != "projector_fit":
            found |= {f"{fit} ({name})": how for fit, how in _fits(value).items()}
    return found


def unconverged(provenance: dict[str, Any]) -> str:
    """Which projectors were still descending when `--fit-steps` ended their fit, as text; "" for none. provenance: of a table of cells."""
    texts = []
    for one in provenance["checkpoints"]:
        fits = _fits(one["notes"]).items()
        texts += [f"{one['run']}: {name} ({fit['steps']} steps, loss {fit['loss']:.3f})" for name, fit in fits if not fit["converged"]]
    head = "projectors that had not converged when --fit-steps ended their fit; their G-SNR holds what is left to fit:"
    return "\n  ".join([head, *texts]) if texts else ""


def easy(metrics: pd.DataFrame) -> str:
    """Which targets are easy, and where: those of whose cosine a constant vector reaches the share EASY or more, as text. metrics: the table
    `alignment.metrics` or `controls`. "" for none."""
    shares = metrics[metrics["metric"] == "constant_share"]
    several, labels = len(shares[["run", "checkpoint"]].drop_duplicates()) > 1, metrics.attrs.get("labels", {})
    texts = []
    for keys, rows in shares.groupby(["run", "checkpoint", "target", "control", "projector"], sort=False):
        run, checkpoint, *which = map(str, keys)
        flagged = rows[rows["value"] >= EASY].sort_values("bin")
        if len(flagged):
            bins = ", ".join(f"{low:.2f}-{high:.2f}" for low, high in zip(flagged["t_low"], flagged["t_high"], strict=True))
            where = "at all t" if len(flagged) == len(rows) else f"at t = {bins}"
            texts.append(f"{f'{run}/{checkpoint}: ' if several else ''}{target_name(*which, labels=labels)} {where}")
    head = f"easy targets, of whose projector's cosine a constant vector reaches {EASY:.0%} or more:"
    return "\n  ".join([head, *texts]) if texts else ""


def readable(metrics: pd.DataFrame) -> str:
    """What the vertex rule chooses beside what the router weighs most, per bin (rows) and part (columns), as text. metrics: the table
    `readability`. "" where the data have no parts to choose from."""
    chosen = metrics[(metrics["metric"] == "predicted_weight") & (metrics["value"] == 1)]
    router = metrics[metrics["metric"] == "router_weight"]
    several, lines = len(chosen[["run", "checkpoint"]].drop_duplicates()) > 1, []
    for (run, checkpoint), rows in chosen.groupby(["run", "checkpoint"], sort=False):
        targets = sorted(rows["target"].drop_duplicates(), key=lambda target: target != "beta")  # the order of the table otherwise
        lines.append((f"{run}/{checkpoint}:" if several else "").ljust(11) + "".join(f"{target.replace('_', ' '):>18}" for target in targets))
        trained = router[(router["run"] == run) & (router["checkpoint"] == checkpoint)]
        for (low, high), here in rows.groupby(["t_low", "t_high"]):
            found = {row["target"]: row for row in here.to_dict("records")}
            cells = [_chosen(found[x], trained[(trained["t_low"] == low) & (trained["target"] == x)].to_dict("records")) for x in targets]
            lines.append(f"{low:.2f}-{high:.2f}".rjust(11) + "".join(f"{cell:>18}" for cell in cells))
    head = "what a linear reader reads best (?: not resolved from another) | what the router weighs most, at the middle of the bin:"
    return "\n".join([head, *lines]) if lines else ""


def _chosen(row: dict[Hashable, Any], router: list[dict[Hashable, Any]]) -> str:
    """ "15 | 15 1.00": a layer by its number, a part by its name. router: the row of each weight."""
    text = row["group"].split(":")[0] + ("" if row["low"] == 1 else "?")
    if not router:
        return text
    most = max(router, key=lambda weight: weight["value"])
    return f"{text} | {most['group'].split(':')[0]} {most['value']:.2f}"
