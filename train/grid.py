"""`gsnr grid`: trains and evaluates several presets, each with several seeds, and writes one table.

    gsnr grid --out runs/ablations --steps 200                                   every row at demo size, one seed
    gsnr grid --out runs/methods --rows sit,ahpa,repa --seeds 0,1,2 --frechet 2048
    gsnr grid --out runs/text --rows mmdit-demo,mmdit-demo-ahpa --seeds 0,1,2                         text to image, by its presets
    gsnr grid --out runs/methods --rows sit,ahpa,repa --frechet 2048 --metrics precision,recall       more columns, of the same samples

One run a folder, OUT/ROW-s0, OUT/ROW-s1, ...; killed and called again, it goes on where it stopped. OUT/table.csv has one line a finished
run of the folder (of these steps and options), OUT/table.md one line a row, mean and standard error over seeds, and the difference from the first
row, paired by seed. Other options (--batch 32, --optim.lr 1e-3, ...) are given to every run as they are.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from gsnr import commands, files, plugins
from gsnr.commandline import Parser, a_path, check_list, chosen, seed
from gsnr.train.children import Children
from gsnr.train.evaluate import asked_of_samples
from gsnr.train.text_presets import OF_DEMO as OF_TEXT

RESULT = "evaluation.json"
COLUMNS = {"velocity_loss": "held-out velocity loss", "frechet": "Fréchet distance"}  # then metrics, by their own labels


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: a row's preset at demo size with a seed."""

    row: str
    seed: int
    out: Path
    steps: int | None
    frechet: int
    options: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.out / f"{self.row}-s{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """What an evaluation must have been made with to be used again; "identity" in its file."""
        asked = {"steps": self.steps, "frechet": self.frechet, "options": list(self.options)}
        return asked | ({"metrics": list(self.metrics)} if self.metrics else {})

    def done(self) -> dict[str, Any] | None:
        """The evaluation, where there is one of this length."""
        path = self.folder / RESULT
        try:
            found: Any = files.read_json(path) if path.is_file() else {"identity": None}
            return dict(found["result"]) if found["identity"] == self.settings else None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it") from error

    def work(self, children: Children, threads: int) -> None:
        """Trains what is left and evaluates. Raises ValueError with the last line of a command that failed, and for a training that was stopped."""
        if self.done() is not None:
            return
        length = [] if self.steps is None else ["--steps", str(self.steps)]
        which = ["--preset", _preset(self.row), "--seed", str(self.seed), "--out", str(self.folder)]
        children.call(["gsnr", "train", *which, "--resume", *length, *self.options], threads)
        asked = json.loads((self.folder / "config.json").read_text())["config"]["steps"]
        metrics = ["--metrics", ",".join(self.metrics)] if self.metrics else []
        words = ["gsnr", "evaluate", "--ckpt", str(self.folder), "--frechet", str(self.frechet), *metrics]
        result = json.loads(children.call(words, threads))
        if result["step"] != asked:
            raise ValueError(f"{self.folder}: stopped after {result['step']} of {asked} steps; call the same again")
        files.write_text(self.folder / RESULT, json.dumps({"identity": self.settings, "result": result}, indent=2) + "\n")


def beside(jobs: list[Job], rows: list[str]) -> list[Job]:
    """The jobs of the same folder, steps and options that were not asked for this time, and may be finished."""
    asked, found = {job.folder.name for job in jobs}, []
    for folder in sorted(jobs[0].out.glob("*-s*")):
        row, _, seed = folder.name.rpartition("-s")
        if folder.name not in asked and row in rows and seed.isdecimal():
            found.append(replace(jobs[0], row=row, seed=int(seed)))
    return found


def table(jobs: list[Job]) -> pd.DataFrame:
    """One line a finished run."""
    lines = [{"row": job.row, "seed": job.seed} | result for job in jobs if (result := job.done()) is not None]
    return pd.DataFrame(lines)


def _mean_se(values: np.ndarray, digits: int = 4) -> str:
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


def summary(runs: pd.DataFrame) -> str:
    """Markdown: one line a row in the order of `runs`; differences are from the first row, over the seeds that both have."""
    first = runs["row"].iloc[0]
    labels = COLUMNS | {name: str(plugins.constant("metrics", name, "LABEL")) for name in plugins.names("metrics")}
    metrics = {key: label for key, label in labels.items() if key in runs}
    head = ["alignment", "seeds", *(f"{name}{end}" for name in metrics.values() for end in ("", f" minus {first}"))]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    baseline = runs[runs["row"] == first].set_index("seed")
    for row, group in runs.groupby("row", sort=False):
        mine = group.set_index("seed")
        shared = mine.index.intersection(baseline.index)
        cells = [str(row), str(len(group))]
        for key in metrics:
            difference = (mine.loc[shared, key] - baseline.loc[shared, key]).to_numpy()
            cells += [_mean_se(group[key].to_numpy()), "" if row == first or not len(shared) else _mean_se(difference)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def seeds_of(text: str) -> list[int]:
    """What --seeds says. Raises ValueError for something else than a list of seeds, and for one that is named twice."""
    try:
        seeds = [seed(part) for part in text.split(",")]
    except ArgumentTypeError as error:
        raise ValueError(f"--seeds {text!r}: a list of whole numbers below 2^63, such as 0,1,2") from error
    check_list("--seeds", tuple(map(str, seeds)))
    return seeds


def _check_options(rows: list[str], options: list[str]) -> None:
    """Raises ValueError for options that the runs would not take, or that would make two rows or seeds the same."""
    from gsnr.train import presets
    from gsnr.train.command import overrides
    from gsnr.train.config import nest, resolve

    flat = overrides(options)
    for key in flat:
        if key.split(".")[0] in ("alignment", "seed", "preset", "config", "out", "resume"):
            raise ValueError(f"--{key}: the grid sets it itself, by --rows, --seeds and --out")
    for row in rows:
        resolve(presets.find(_preset(row)), nest(dict(flat)))


def _preset(row: str) -> str:
    return row if row in OF_TEXT else f"{row}-demo"


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr grid", __doc__)
    parser.add_argument("--out", type=a_path, required=True, metavar="DIR", help="folder of the runs and the table")
    parser.add_argument("--rows", metavar="A,B", help="rows of `gsnr train --list-presets` (default: all); the first is the baseline")
    parser.add_argument("--seeds", default="0", metavar="A,B", help="seeds (default: 0)")
    parser.add_number("--steps", None, "steps of each run (default: the demo's)", low=1, high=10**9)
    parser.add_number("--frechet", 0, "samples for the Fréchet distance; 0 for none", low=0, high=10**6)
    parser.add_argument("--metrics", metavar="A,B", help=f"also, of these samples: {', '.join(plugins.names('metrics'))} (default: none)")
    parser.add_number("--jobs", 1, "runs side by side, which share the cores", low=1, high=256, metavar="J")
    return parser


def _work(jobs: list[Job], side_by_side: int) -> list[str]:
    """Does all jobs; the errors of those that failed. Stopped by a signal or Ctrl-C, it takes its runs along, which save."""
    threads = max(1, (os.cpu_count() or 1) // side_by_side)
    children = Children()
    failed = []
    with ThreadPoolExecutor(side_by_side) as executor, children.bound():
        working = [executor.submit(job.work, children, threads) for job in jobs]
        for future in tqdm(as_completed(working), total=len(jobs), desc="grid", unit="run", mininterval=1.0, leave=False):
            if (error := future.exception()) is not None:
                if not isinstance(error, ValueError):
                    raise error
                failed.append(str(error))
    return failed


def main(argv: list[str]) -> int:
    from gsnr.train import presets

    args, options = _parser().parse_known_args(argv)
    rows = [name for name, row in presets.ROWS.items() if row.runs_on_demo]
    if args.rows is not None:
        rows = list(chosen("--rows", args.rows, (*presets.ROWS, *OF_TEXT)))
    known = OF_TEXT if rows[0] in OF_TEXT else tuple(presets.ROWS)
    if other := [row for row in rows if row not in known]:
        raise ValueError(f"--rows {rows[0]},{other[0]}: one of them reads captions and one classes; a grid compares rows of one kind")
    seeds = seeds_of(args.seeds)
    metrics = asked_of_samples(args.frechet, args.metrics)
    _check_options(rows, options)
    files.check_writable(args.out, "--out")
    shared: dict[str, Any] = {"out": args.out, "steps": args.steps, "frechet": args.frechet, "options": tuple(options), "metrics": metrics}
    jobs = [Job(row=row, seed=seed, **shared) for seed in seeds for row in rows]
    failed = _work(jobs, args.jobs)
    every = [*rows, *(row for row in known if row not in rows)]
    runs = table(sorted([*jobs, *beside(jobs, every)], key=lambda job: (every.index(job.row), job.seed)))
    if len(runs):
        args.out.mkdir(parents=True, exist_ok=True)
        files.write_texts({args.out / "table.csv": runs.to_csv(index=False), args.out / "table.md": summary(runs)})
        print(summary(runs))
        print(f"wrote {args.out / 'table.csv'} and {args.out / 'table.md'}: {len(runs)} runs")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} runs failed; the first: {failed[0]}")
    return 0


if __name__ == "__main__":
    commands.run("grid")
