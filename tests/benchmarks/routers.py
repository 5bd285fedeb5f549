"""What routers with an objective bring, by the rule in docs/stopping.md: the two tables of `make routers`.

    python -m tests.benchmarks.routers runs/routers

Intervals: Student's t over seeds, of differences paired by seed; a star where Holm's step-down over the rows says that a row differs. A router's
weight of the deep group, beta, is read from the run's log at its last step.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsnr import files, logs
from tests.benchmarks.routed import against

REFERENCE, ROWS, LEARNED = (
    "uniform-both",
    ("uniform-both", "sit", "ahpa", "router-lookahead", "per-group", "b3"),
    ("ahpa", "router-lookahead", "per-group"),
)
TIMES, TURNED, COLLAPSED, UNIFORM, LONGEST = (0.1, 0.5, 0.9), 0.2, 0.95, 0.02, 10**9


def evaluations(runs: Path, seeds: int) -> pd.DataFrame:
    """One line a row and seed."""
    lines = []
    for row in ROWS:
        for seed in range(seeds):
            found = files.read_json(runs / f"{row}-s{seed}" / "evaluation.json")
            lines.append({"row": row, "seed": seed} | dict(found.get("result", found)))
    return pd.DataFrame(lines)


def said_of(line: dict[str, Any]) -> str:
    """Of one line of a run's router log: beta of the deep group at some times, and what the rule calls it."""
    beta_T, t_T = np.array(line["beta"])[:, 1], np.array(line["t"])
    at = np.interp(TIMES, t_T, beta_T)
    turned, one = at[-1] - at[0], "deep" if beta_T.min() > COLLAPSED else "mid" if beta_T.max() < 1 - COLLAPSED else ""
    still = "uniform" if np.abs(beta_T - 0.5).max() < UNIFORM else ""
    verdict = f"collapsed on {one}" if one else f"hands over ({turned:+.2f})" if abs(turned) > TURNED else still
    return f"{' '.join(f'{x:.2f}' for x in at)}{' ' if verdict else ''}{verdict}"


def routed(runs: Path, seeds: int) -> list[str]:
    """Markdown: beta of every seed."""
    head = f"| beta deep at t = {', '.join(map(str, TIMES))} | {' | '.join(f'seed {seed}' for seed in range(seeds))} |"
    lines = [head, "|---" * (1 + seeds) + "|"]
    for row in LEARNED:
        cells = [said_of(logs.read(runs / f"{row}-s{seed}" / "router.jsonl", LONGEST)[-1]) for seed in range(seeds)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.routers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    lines = [*against(evaluations(args.runs, args.seeds), ROWS, REFERENCE, {}), "", *routed(args.runs, args.seeds)]
    files.write_text(args.runs / "routers.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
