"""What the AHPA paper says of its Fig. 2 and Fig. 5, and DAR of its Fig. 2, and a run's answer, each in sentences made of its tables.

"Ahead" is said of a paired difference whose 95 % interval excludes 0. A high G-SNR is not yet help: `gsnr.verdict` says what is above its control
and with denoising. The handover is judged by the rule of docs/handover.md, as far as one run can tell.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from gsnr.figures.fig_handover import HIGH_T, LOW_T, SETTLING, verdicts
from gsnr.figures.tables import trajectory
from gsnr.figures.targets import labels_of
from gsnr.table import target_name

NOISY, CLEAN = "t > 0.5", "t < 0.5"
STUCK, STILL, HANDED = 1e-6, 0.02, 0.2  # of docs/handover.md: no gradient left; moved at the end; a difference that counts


def _averages(cells: pd.DataFrame, samples: pd.DataFrame, targets: tuple[str, ...]) -> pd.DataFrame | str:
    """`trajectory` of these targets with fitted projectors, in this order; a sentence where they, or bins in both halves of t, are not all there."""
    mine = [frame[(frame["control"] == "none") & (frame["projector"] == "fit")] for frame in (cells, samples)]
    labels, there = labels_of(cells), set(mine[0]["target"])
    if missing := [target_name(target, "none", "fit", labels=labels) for target in targets if target not in there]:
        return f"Not measured in this run: {', '.join(missing)}."
    ordered, theirs = (pd.concat([frame[frame["target"] == target] for target in targets], ignore_index=True) for frame in mine)
    ordered.attrs["labels"] = labels
    found = trajectory(ordered, theirs)
    return found if NOISY in found and CLEAN in found else "The bins of this table do not reach both halves of t."


def _interval(row: dict[str, Any], column: str) -> str:
    return f"{row[column]:.1f} [{row[f'{column} low']:.1f}, {row[f'{column} high']:.1f}]"


def collapse(cells: pd.DataFrame, samples: pd.DataFrame, targets: tuple[str, ...] = ("repa", "sra2")) -> str:
    """Fig. 2(a): the G-SNR of fixed targets falls away late in denoising, near the data. Intervals of the halves are not paired, so a difference is
    said where they do not overlap."""
    lines = []
    for target in targets:
        found = _averages(cells, samples, (target,))
        if isinstance(found, str):
            lines.append(found)
            continue
        row = {str(key): value for key, value in found.iloc[0].items()}
        falls, rises = row[f"{NOISY} low"] > row[f"{CLEAN} high"], row[f"{CLEAN} low"] > row[f"{NOISY} high"]
        said = "less near the data, as the paper says" if falls else "more near the data, the other way" if rises else "no difference is resolved"
        lines.append(f"{row['name']}: {_interval(row, CLEAN)} at {CLEAN} and {_interval(row, NOISY)} at {NOISY}: {said}.")
    return "\n".join(lines)


def _ahead(row: dict[str, Any], part: str) -> int:
    """1 where a target is ahead of the first, -1 where the first is, 0 where neither is resolved."""
    return int(row[f"{part} minus first low"] > 0) - int(row[f"{part} minus first high"] < 0)


def crossing(cells: pd.DataFrame, samples: pd.DataFrame, mid: str = "uniform_mid", deep: str = "uniform_deep") -> str:
    """Fig. 2(b): deep layers are ahead at high noise, mid layers near the data."""
    found = _averages(cells, samples, (mid, deep))
    if isinstance(found, str):
        return found
    names, row = found["name"].tolist(), {str(key): value for key, value in found.iloc[1].items()}
    who = {1: f"{names[1]} is ahead", -1: f"{names[0]} is ahead", 0: "neither is ahead"}
    parts = [f"At {part}, {who[_ahead(row, part)]} ({_interval(row, f'{part} minus first')})." for part in (NOISY, CLEAN)]
    crosses = (_ahead(row, NOISY), _ahead(row, CLEAN)) == (1, -1)
    end = "They cross, as the paper says." if crosses else "That is not the crossing of the paper."
    return "\n".join([f"{names[1]} minus {names[0]}, paired by image:", *parts, end])


def envelope(cells: pd.DataFrame, samples: pd.DataFrame, mixture: str = "ahpa", others: tuple[str, ...] = ("uniform_mid", "uniform_deep")) -> str:
    """Fig. 2(c): the routed mixture stays as high as the best of its parts over all t."""
    found = _averages(cells, samples, (mixture, *others))
    if isinstance(found, str):
        return found
    first, *rest = [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]
    ahead = [
        f"{row['name']} at {part} (by {_interval(row, f'{part} minus first')})" for row in rest for part in (NOISY, CLEAN) if _ahead(row, part) > 0
    ]
    if ahead:
        return f"Ahead of {first['name']}, paired by image: {'; '.join(ahead)}.\nSo it is not at the top over all t."
    return f"Neither half of t shows one of its parts ahead of {first['name']}: no contradiction to the paper."


def handover(router: pd.DataFrame) -> str:
    """Fig. 5: mid layers near the data, deep layers at high noise. One sentence a run of a table `router`, its numbers below it. A table without
    a log of its router gives the reason."""
    try:
        found = verdicts(router)
    except ValueError as error:
        return f"No verdict: {error}"
    return "\n".join(_handed({str(key): value for key, value in row.items()}) for row in found.to_dict("records"))


def _handed(row: dict[str, Any]) -> str:
    ends = f"At step {row['step']}, beta of the deep group is {row['low_t']:.3f} at t = {LOW_T} and {row['high_t']:.3f} at t = {HIGH_T}"
    way = f"The largest difference on the way is {row['largest']:+.2f}, at step {row['largest_at']}"
    if row["slope"] < STUCK:
        said = "Stuck, no verdict: no gradient reaches this router any more, so where it stands says nothing of where it would rest"
    elif not row["moving"] < STILL:
        said = f"No verdict: it is not known to be at rest (moved by {row['moving']:.2f} in the last {SETTLING} steps)"
    elif abs(row["difference"]) > HANDED:
        way_round = "in the paper's direction" if row["difference"] > 0 else "against the paper's direction"
        said = f"A handover, {way_round}, if another rate of the router shows it, too"
    elif abs(row["largest"]) > HANDED:
        said = "No handover: a transient. Beta varied with t on the way, and no longer does"
    else:
        said = "No handover, at rest or on the way"
    return f"{row['run']}: {said}.\n  {ends}.\n  {way}."


def stream(metrics: pd.DataFrame) -> str:
    """DAR's Fig. 2: size grows over depth while its gradient fades. Also what is the same in every gauge. metrics: a `residual_stream` table."""
    known = metrics[metrics["metric"].isin(("rms", "gradient_rms", "gauge_free", "token_cosine"))]
    if known.empty:
        return "Not measured in this run: the residual stream."
    of = {name: part.pivot(index="bin", columns="group", values="value") for name, part in known.groupby("metric")}
    last = f"block {of['rms'].shape[1]}"
    lines = []
    for name, said in (("rms", "RMS(z)"), ("gradient_rms", "RMS(dL/dz)"), ("gauge_free", "Their product, the same in every gauge,")):
        ratio = of[name][last] / of[name]["block 1"]
        lines.append(f"{said} of {last} is {ratio.mean():.2f} times that of block 1 ({ratio.min():.2f} to {ratio.max():.2f} over t).")
    if "token_cosine" in of:
        cosines = of["token_cosine"]
        low, high = float(cosines.min().min()), float(cosines.max().max())
        lines.append(f"Neighbouring blocks have cosines from {low:.2f} to {high:.2f}.")
    return "\n".join(lines)
