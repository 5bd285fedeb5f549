"""What routing across depth (DAR) brings at the demo's size: the table of `make routing`, by the rule in docs/routing.md.

    python -m tests.benchmarks.routed runs/routing      after `gsnr grid` and `gsnr probe`: the Makefile has both

Reads the grid's evaluations (all rows after the same steps) and the probe's table RUNS/stream/residual_stream.parquet, and evaluates each run at its
last saved step within the MACs of the cheapest row. Writes RUNS/routing.md. Intervals: Student's t over seeds, of differences paired by seed.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr

from gsnr import files, table
from gsnr.intervals import student_interval
from gsnr.stopping.rho import holm
from gsnr.train import presets
from gsnr.train.children import Children
from gsnr.train.config import resolve
from gsnr.train.costing import counts

ROWS = ("sit", "sit-plus", "dar-static", "dar-static-t", "dar-dynamic")
METRICS = {"velocity_loss": ("held-out velocity loss", 4), "frechet": ("Fréchet distance", 2)}
DIAGNOSTICS = {
    "rms": "RMS(z), last / first block",
    "gradient_rms": "RMS(dL/dz), last / first",
    "gauge_free": "their product, last / first",
    "token_cosine": "cosine of neighbours",
    "t_readability": "R² of t, last block",
}


def budgets(steps: int, every: int) -> dict[str, int]:
    """row -> its last saved step (of each `every`) within the MACs that the cheapest row spends on `steps`."""
    macs = {row: counts.macs(resolve(presets.at(row, presets.DEMO))).backbone for row in ROWS}
    least = min(macs.values())
    return {row: steps if of == least else steps * least // of // every * every for row, of in macs.items()}


def evaluated(run: Path, step: int, children: Children) -> dict[str, Any]:
    """Of one of a run's checkpoints, with as many samples as the grid drew of the last."""
    last = files.read_json(run / "evaluation.json")["result"]
    if last["step"] == step:
        return dict(last)
    kept = run / "equal-macs.json"
    if not kept.is_file() or files.read_json(kept)["step"] != step:
        where = ["--ckpt", str(run / "checkpoints" / f"{step:07d}"), "--out", str(kept)]
        children.call(["gsnr", "evaluate", *where, "--frechet", str(last["frechet_samples"])], 1)
    return dict(files.read_json(kept))


def evaluations(runs: Path, seeds: int, steps: dict[str, int]) -> pd.DataFrame:
    """One line a row and seed."""
    pairs, children = [(row, seed) for row in ROWS for seed in range(seeds)], Children()
    with ThreadPoolExecutor(2) as executor, children.bound():
        found = list(executor.map(lambda pair: evaluated(runs / f"{pair[0]}-s{pair[1]}", steps[pair[0]], children), pairs))
    return pd.DataFrame([{"row": row, "seed": seed} | result for (row, seed), result in zip(pairs, found, strict=True)])


def diagnostics(stream: pd.DataFrame) -> pd.DataFrame:
    """One line a run and step: ratios by bin, then means over t. stream: a `residual_stream` table of several checkpoints."""
    lines = []
    for (run, step), rows in stream.groupby(["run", "step"]):
        row, _, seed = run.rpartition("-s")
        of = {metric: part.pivot(index="bin", columns="group", values="value") for metric, part in rows.groupby("metric") if metric in DIAGNOSTICS}
        last = f"block {of['rms'].shape[1]}"
        line = {metric: (of[metric][last] / of[metric]["block 1"]).mean() for metric in ("rms", "gradient_rms", "gauge_free")}
        line |= {"token_cosine": of["token_cosine"].to_numpy().mean(), "t_readability": of["t_readability"][last].iloc[0]}
        lines.append({"row": row, "seed": int(seed), "step": step} | line)
    return pd.DataFrame(lines)


def paired(frame: pd.DataFrame, column: str, row: str, other: str) -> tuple[float, float, float, float]:
    """Mean difference, its 95 % interval, and the two-sided p of Student's t."""
    wide = frame.pivot(index="seed", columns="row", values=column)
    d = (wide[row] - wide[other]).to_numpy()
    mean, se = float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))
    return mean, *student_interval(mean, se, len(d), 0.95), float(2 * stdtr(len(d) - 1, -abs(mean) / se))


def _cell(frame: pd.DataFrame, column: str, digits: int, row: str, other: str, mark: str = "") -> str:
    mean, low, high, _ = paired(frame, column, row, other)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{mark}"


def compared(frame: pd.DataFrame, steps: dict[str, int]) -> list[str]:
    """Markdown. A star: Holm's step-down over the rows says that it differs."""
    heads = [head for name, _ in METRICS.values() for head in (name, "minus sit")]
    lines = [f"| row | steps | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    starred: dict[str, list[str]] = {}
    for column in METRICS:
        p = sorted((paired(frame, column, row, "sit")[3], row) for row in ROWS[1:])
        starred[column] = [row for _, row in p[: holm([one for one, _ in p], 0.05)]]
    for row in ROWS:
        cells = []
        for column, (_, digits) in METRICS.items():
            mark = "*" if row in starred[column] else ""
            cells.append(f"{frame.loc[frame['row'] == row, column].mean():.{digits}f}")
            cells.append("" if row == "sit" else _cell(frame, column, digits, row, "sit", mark))
        lines.append(f"| {row} | {steps[row]} | {' | '.join(cells)} |")
    planned = [_cell(frame, column, digits, "dar-dynamic", "sit-plus") for column, (_, digits) in METRICS.items()]
    return [*lines, f"| dar-dynamic minus sit-plus | | | {planned[0]} | | {planned[1]} |"]


def diagnosed(frame: pd.DataFrame) -> list[str]:
    """Markdown: before -> after, and the difference from `sit` after."""
    early, late = sorted(frame["step"].unique())
    before, after = frame[frame["step"] == early], frame[frame["step"] == late]
    lines = [f"| step {early} -> {late} | {' | '.join(ROWS)} |", "|---" * (1 + len(ROWS)) + "|"]
    for column, name in DIAGNOSTICS.items():
        was, now = (part.groupby("row")[column].mean() for part in (before, after))
        lines.append(f"| {name} | {' | '.join(f'{was[row]:.3f} -> {now[row]:.3f}' for row in ROWS)} |")
        lines.append(f"| minus sit | | {' | '.join(_cell(after, column, 3, row, 'sit') for row in ROWS[1:])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.routed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    args = parser.parse_args()
    steps = int(json.loads((args.runs / f"{ROWS[0]}-s0" / "config.json").read_text())["config"]["steps"])
    alike, cheap = dict.fromkeys(ROWS, steps), budgets(steps, args.every)
    lines = [f"{args.seeds} seeds; 95 % intervals (Student's t) of differences paired by seed; *: differs from sit (Holm over the rows)", ""]
    for title, of in (("Equal steps", alike), ("Equal MACs", cheap)):
        lines += [title, "", *compared(evaluations(args.runs, args.seeds, of), of), ""]
    stream = table.read(args.runs / "stream" / "residual_stream.parquet", "residual_stream")
    lines += ["Diagnostics", "", *diagnosed(diagnostics(stream))]
    files.write_text(args.runs / "routing.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
