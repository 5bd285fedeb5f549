"""What routing across depth (DAR) brings at the demo's size: the table of `make routing`, by the rule in docs/routing.md.

    python -m tests.benchmarks.routed runs/routing      after its `gsnr grid` (see the Makefile); goes on where it stopped

Reads the grid's evaluations (all rows after the same steps), evaluates each run at its last saved step within the MACs of the cheapest row, and
probes its residual stream at an early checkpoint and at the last. Writes RUNS/routing.md.
Intervals: Student's t over seeds, of differences paired by seed.
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
CHEAP, PROBE, EARLY, IMAGES = "equal-macs.json", "residual_stream", 100, 64
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


def result_of(run: Path, step: int) -> dict[str, Any] | None:
    """The evaluation of one of a run's checkpoints, where there is one."""
    last = files.read_json(run / "evaluation.json")["result"]
    if last["step"] == step:
        return dict(last)
    kept = run / CHEAP
    found = files.read_json(kept) if kept.is_file() else {"step": None}
    return dict(found) if found["step"] == step else None


def tables_of(run: Path) -> dict[Path, Path]:
    """folder of a table -> the checkpoint that it is of: the early one, and the last."""
    return {run / "early": run / "checkpoints" / f"{EARLY:07d}", run / "probes": run}


def work(runs: Path, pairs: list[tuple[str, int]], steps: dict[str, int]) -> None:
    """Evaluates and probes what is left, two at a time."""
    children, evaluate, probe = Children(), list[list[str]](), list[list[str]]()
    for row, seed in pairs:
        run = runs / f"{row}-s{seed}"
        if result_of(run, steps[row]) is None:
            samples = files.read_json(run / "evaluation.json")["result"]["frechet_samples"]
            which = ["--ckpt", str(run / "checkpoints" / f"{steps[row]:07d}"), "--out", str(run / CHEAP)]
            evaluate.append(["gsnr", "evaluate", *which, "--frechet", str(samples)])
        for out, ckpt in tables_of(run).items():
            if not (out / f"{PROBE}.parquet").is_file():
                probe.append(["gsnr", "probe", "--ckpt", str(ckpt), "--probe", PROBE, "--n-images", str(IMAGES), "--out", str(out), "--resume"])
    with ThreadPoolExecutor(2) as executor, children.bound():
        for _ in executor.map(lambda words: children.call(words, 1), [*evaluate, *probe]):
            pass


def evaluations(runs: Path, pairs: list[tuple[str, int]], steps: dict[str, int]) -> pd.DataFrame:
    """One line a row and seed."""
    return pd.DataFrame([{"row": row, "seed": seed} | (result_of(runs / f"{row}-s{seed}", steps[row]) or {}) for row, seed in pairs])


def diagnostics(stream: pd.DataFrame) -> pd.DataFrame:
    """One line a run and step: ratios by bin, then means over t. stream: a `residual_stream` table of several checkpoints."""
    lines = []
    for (run, step), rows in stream.groupby(["run", "step"]):
        row, _, seed = str(run).rpartition("-s")
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


def against(frame: pd.DataFrame, rows: tuple[str, ...], other: str, said: dict[str, dict[str, int]]) -> list[str]:
    """Markdown: each row's metrics, and what they are minus those of `other`. A star: Holm's step-down over the rows says that it differs. said:
    head of a column to stand before them -> row -> what it says there."""
    heads = ["row", *said, *(head for name, _ in METRICS.values() for head in (name, f"minus {other}"))]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    starred: dict[str, list[str]] = {}
    for column in METRICS:
        p = sorted((paired(frame, column, row, other)[3], row) for row in rows if row != other)
        starred[column] = [row for _, row in p[: holm([one for one, _ in p], 0.05)]]
    for row in rows:
        cells = [row, *(str(of[row]) for of in said.values())]
        for column, (_, digits) in METRICS.items():
            mark = "*" if row in starred[column] else ""
            cells.append(f"{frame.loc[frame['row'] == row, column].mean():.{digits}f}")
            cells.append("" if row == other else _cell(frame, column, digits, row, other, mark))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def compared(frame: pd.DataFrame, steps: dict[str, int]) -> list[str]:
    """Markdown: all rows against the plain stream, and the comparison that was planned."""
    lines = against(frame, ROWS, "sit", {"steps": steps})
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
    pairs = [(row, seed) for row in ROWS for seed in range(args.seeds)]
    work(args.runs, pairs, cheap)
    lines = [f"{args.seeds} seeds; 95 % intervals (Student's t) of differences paired by seed; *: differs from sit (Holm over the rows)", ""]
    for title, of in (("Equal steps", alike), ("Equal MACs", cheap)):
        lines += [title, "", *compared(evaluations(args.runs, pairs, of), of), ""]
    folders = [out for row, seed in pairs for out in tables_of(args.runs / f"{row}-s{seed}")]
    stream = pd.concat([table.read(folder / f"{PROBE}.parquet", PROBE) for folder in folders], ignore_index=True)
    lines += ["Diagnostics", "", *diagnosed(diagnostics(stream))]
    files.write_text(args.runs / "routing.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
