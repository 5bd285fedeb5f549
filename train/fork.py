"""`gsnr fork`: goes on from one checkpoint with several alignments and with none, on the same batches, and compares what they became.

    gsnr fork --ckpt RUN --rows repa,ahpa,shuffled:repa --steps 600 --seeds 0,1,2,3,4 --out forks
    gsnr fork --ckpt RUN --rows none --steps 600 --seeds 0,1,2,3,4 --out power      vanilla alone: which effects could be seen at all
    gsnr fork --ckpt RUN/checkpoints/0000800 --rows repa@1,repa@3,repa@3:0-0.5 --steps 600 --seeds 0,1 --frechet 2048 --out forks --dry-run

Rows are those of `gsnr train --list-presets`, ROW@BLOCK, ROW@BLOCK:LOW-HIGH (of t), ROW=WEIGHT, and own, the checkpoint's own alignment; a
negative control stands before: shuffled:, shuffled_class:, random: or constant:. The fork without alignment, none, is always there. All forks of
a seed see the same images, times, noise and dropped labels, and start with the same weights, moving average and optimizer state; new projectors
and routers start afresh, by the seed. Each fork is a run folder, OUT/ROW-s0; called again after a kill, the same command goes on. Other options
(--batch 32, ...) are given to every fork. docs/deciding.md says how to read the table.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gsnr import commands, files, plugins
from gsnr.commandline import Parser, a_path, listed
from gsnr.train.children import Children
from gsnr.train.evaluate import asked_of_samples
from gsnr.train.grid import seeds_of

if TYPE_CHECKING:
    from gsnr.train.forking.job import Job
    from gsnr.train.runs.checkpoint import Checkpoint

SET_HERE = ("alignment", "schedule", "velocity_schedule", "model", "seed", "steps", "preset", "config", "out", "resume", "init")


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr fork", __doc__)
    parser.add_argument("--ckpt", type=a_path, required=True, metavar="DIR", help="run folder (its last checkpoint) or checkpoint folder to fork")
    parser.add_argument("--rows", required=True, metavar="A,B", help="what to go on with; none alone is for the power calculation")
    parser.add_number("--steps", None, "steps of each fork, beyond the checkpoint's", low=1, high=10**9, metavar="S")
    parser.add_argument("--seeds", default="0", metavar="A,B", help="seeds of batches and new modules (default: 0)")
    parser.add_argument("--out", type=a_path, required=True, metavar="DIR", help="folder of the forks and the tables")
    parser.add_number("--lr", None, "learning rate of the forks (default: the checkpoint's)", low=0, high=1e3, of=float, metavar="F")
    parser.add_number("--n-images", None, "held-out images of the velocity loss (default: all)", low=2, high=10**9)
    parser.add_number("--frechet", 0, "also draw N samples for the Fréchet distance; 0 for none", low=0, high=10**6)
    parser.add_argument("--metrics", metavar="A,B", help=f"also, of these samples: {', '.join(plugins.names('metrics'))} (default: none)")
    parser.add_number("--jobs", 1, "forks side by side, which share the cores", low=1, high=256, metavar="J")
    parser.add_argument("--only", metavar="ROW,SEED", help="this fork alone, and no tables: for a cluster's job array, and what --jobs starts")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and how long it may take")
    return parser


def _row_words(text: str) -> list[str]:
    """What --rows says, vanilla first."""
    from gsnr.train.forking.rows import VANILLA

    return list(dict.fromkeys([VANILLA, *listed("--rows", text)]))


def _changes(args: Namespace, options: list[str]) -> dict[str, Any]:
    """Options of the configuration that all forks get. Raises ValueError for one that the forks set themselves."""
    from gsnr.train.command import overrides
    from gsnr.train.config import nest
    from gsnr.train.forking.rows import AS_IT_WAS

    flat = overrides(options)
    for key in flat:
        if key in AS_IT_WAS:
            raise ValueError(f"--{key.replace('_', '-')}: forks neither measure, draw nor keep anything on their way")
        if key.split(".")[0] in SET_HERE or key in ("data.control", "data.path"):
            raise ValueError(f"--{key}: a fork has it from the checkpoint, --rows, --seeds or --steps")
    return nest(flat | ({} if args.lr is None else {"optim.lr": args.lr}))


def jobs_of(args: Namespace, options: list[str], loaded: Checkpoint) -> list[Job]:
    """All forks that are asked for, seed by seed. Raises ValueError for bad input."""
    from gsnr.train.config import resolve
    from gsnr.train.forking import rows, start
    from gsnr.train.forking.job import Job
    from gsnr.train.forking.measure import Asked

    start.require_training_state(loaded)
    changes, seeds = _changes(args, options), seeds_of(args.seeds)
    resolve(asdict(loaded.config), changes)
    asked = Asked(images=args.n_images, frechet=args.frechet, metrics=tuple(args.metrics.split(",")) if args.metrics else ())
    jobs = []
    for seed in seeds:
        for row in map(rows.parse, _row_words(args.rows)):
            config = rows.config_of(row, loaded.config, seed, loaded.step, args.steps, changes)
            record = {"checkpoint": loaded.sha, "step": loaded.step, "row": row.label, "seed": seed, "lr": config.optim.lr, "options": options}
            jobs.append(Job(row=row, seed=seed, config=config, folder=args.out / f"{row.folder}-s{seed}", record=record, asked=asked))
    for job in jobs:
        job.check()
    return jobs


def _check(args: Namespace) -> None:
    """Raises ValueError for flags that do not go together."""
    if args.steps is None:
        raise ValueError("--steps is needed: how many steps each fork goes on for")
    asked_of_samples(args.frechet, args.metrics)
    files.check_writable(args.out, "--out")


def _estimated(loaded: Checkpoint, jobs: list[Job], side_by_side: int) -> str:
    """How long what is left may take, by forks that are finished, or else by the speed of the run that is forked."""
    from gsnr import logs
    from gsnr.train.forking import measure

    left = [job for job in jobs if not job.done()]
    known = [sec for job in jobs if (sec := measure.sec(job.folder)) is not None]
    lines = logs.read(loaded.run_folder / "metrics.jsonl", loaded.step) if loaded.run_folder is not None else []
    speeds = [line["it_per_s"] for line in lines[-20:] if line.get("it_per_s")]
    steps = jobs[0].config.steps - loaded.step
    each = sum(known) / len(known) if known else steps * len(speeds) / sum(speeds) if speeds else None
    said = f"{len(jobs)} forks of {steps} steps, {len(left)} to do"
    if each is None:
        return f"{said}; the run's log says nothing of its speed"
    by = "finished forks" if known else "the speed of the run, without the evaluation"
    return f"{said}: about {each * len(left) / side_by_side / 60:.0f} minutes ({each:.0f} s each, by {by})"


def _work_here(jobs: list[Job], loaded: Checkpoint) -> list[str]:
    """One after another in this process; the errors of those that failed."""
    from gsnr.train.forking import measure, start

    left = [job for job in jobs if not job.done()]
    if not left:
        return []
    parent, reference = start.parent_of(loaded), measure.Reference.of(loaded, samples=bool(jobs[0].asked.frechet))
    failed = []
    for job in tqdm(left, desc="forks", unit="fork", initial=len(jobs) - len(left), total=len(jobs)):
        try:
            job.begin(parent)
            job.work(reference)
        except ValueError as error:
            failed.append(str(error))
            if "stopped at step" in failed[-1]:
                break
    return failed


def _work_beside(jobs: list[Job], words: list[str], side_by_side: int) -> list[str]:
    """In processes; the errors of those that failed. Stopped by a signal or Ctrl-C, it takes them along, which save."""
    left = [job for job in jobs if not job.done()]
    threads, children, failed = max(1, (os.cpu_count() or 1) // side_by_side), Children(), []
    with ThreadPoolExecutor(side_by_side) as executor, children.bound():
        working = [executor.submit(children.call, ["gsnr", "fork", *words, "--only", f"{job.row.label},{job.seed}"], threads) for job in left]
        bar = tqdm(as_completed(working), desc="forks", unit="fork", initial=len(jobs) - len(left), total=len(jobs), mininterval=1.0)
        for future in bar:
            if (error := future.exception()) is not None:
                if not isinstance(error, ValueError):
                    raise error
                failed.append(str(error))
    return failed


def _write(args: Namespace, loaded: Checkpoint, jobs: list[Job]) -> str:
    """The tables of what is finished."""
    from gsnr.train.forking import compare, measure, tables
    from gsnr.train.forking.rows import VANILLA
    from gsnr.train.metrics import Moments

    reference = measure.Reference.of(loaded, samples=bool(args.frechet))
    moments = None if reference.train is None else Moments.of(reference.train)
    forks = [fork for job in jobs if (fork := job.measured(moments)) is not None]
    if not forks:
        return ""
    found = compare.differences(forks, VANILLA)
    first = jobs[0]
    about = {
        "checkpoint": str(loaded.folder),
        "checkpoint_sha": loaded.sha,
        "step": loaded.step,
        "steps": first.config.steps - loaded.step,
        "lr": first.config.optim.lr,
        "batch": first.config.batch,
        "seeds": sorted({fork.seed for fork in forks}),
        "rows": list(dict.fromkeys(fork.row for fork in forks)),
        "options": first.record["options"],
    } | first.asked.settings
    return tables.write(args.out, about, forks, found, compare.power(forks, found, VANILLA))


def _only(jobs: list[Job], text: str, loaded: Checkpoint) -> int:
    row, _, seed = text.rpartition(",")
    chosen = [job for job in jobs if (job.row.label, str(job.seed)) == (row, seed)]
    if not chosen:
        raise ValueError(f"--only {text!r}: is none of the forks of --rows and --seeds; write ROW,SEED")
    if failed := _work_here(chosen, loaded):
        raise ValueError(failed[0])
    return 0


def main(argv: list[str]) -> int:
    args, options = _parser().parse_known_args(argv)
    _check(args)
    from gsnr.train import opening
    from gsnr.train.data.heldout import require

    loaded = opening.last_checkpoint(args.ckpt, "ema")
    if args.n_images is not None and loaded.header is not None and args.n_images > loaded.header.sizes["heldout"]:
        require(opening.data_of(loaded, None, features=False)[1]["heldout"], args.n_images)
    if args.n_images is None and loaded.header is not None:
        args.n_images = loaded.header.sizes["heldout"]
    jobs = jobs_of(args, options, loaded)
    if args.only is not None:
        return _only(jobs, args.only, loaded)
    said = _estimated(loaded, jobs, args.jobs)
    print(said, file=sys.stdout if args.dry_run else sys.stderr)
    if args.dry_run:
        return 0
    failed = _work_here(jobs, loaded) if args.jobs == 1 else _work_beside(jobs, argv, args.jobs)
    if words := _write(args, loaded, jobs):
        print(words)
        print(f"wrote table.csv, differences.csv, table.md and forks.json to {args.out}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} forks failed; the first: {failed[0]}")
    return 0


if __name__ == "__main__":
    commands.run("fork")
