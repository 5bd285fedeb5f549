"""`gsnr recommend`: which target, at which block, for which t? All criteria of one checkpoint, the pick of each, and how far they are to be trusted.

    gsnr recommend --ckpt RUN                                        a table and a figure in RUN/recommended; minutes on the demo
    gsnr recommend --ckpt RUN --rows repa@2,repa@3,ahpa@2,shuffled:repa@2
    gsnr recommend --ckpt RUN --forks forks/from-800                 ... against what forks of these rows became
    gsnr recommend --ckpt RUN --validate --steps 600 --seeds 0,1,2   ... which are trained here first

One row is a target at a block, over a range of t: ROW@BLOCK, ROW@BLOCK:LOW-HIGH, as `gsnr fork` takes it. Negative controls (shuffled:, random:,
constant:) are rows, and must rank last: a criterion that ranks one above a target has failed. docs/deciding.md says how to read it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsnr import commands, files, plugins
from gsnr.commandline import Parser, a_cache, a_path, listed, seed

if TYPE_CHECKING:
    from gsnr.probes.common.case import Case, Row
    from gsnr.probes.common.recommendation import Recommendation
    from gsnr.probes.common.subject import Subject

TARGETS, RANGED = ("repa", "uniform-deep", "uniform-mid"), ("0-0.5", "0.5-1")
CONTROLS = ("shuffled", "random", "constant")

TRAIN_IMAGES = 512  # or all, where there are fewer
FIT: dict[str, Any] = {"fit_samples": 4096}  # of a row's projector: options of the probes


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr recommend", __doc__)
    parser.add_argument("--ckpt", type=a_path, required=True, metavar="DIR", help="run folder or checkpoint folder, best of a run without alignment")
    parser.add_argument("--data", type=a_cache, metavar="CACHE", help="cache to measure on (default: the one the checkpoint was trained on)")
    parser.add_argument("--rows", metavar="A,B", help="rows (default: the targets that the data allow at four blocks, two ranges of t, controls)")
    parser.add_argument("--criteria", metavar="A,B", help=f"of {', '.join(plugins.names('criteria'))} (default: all)")
    parser.add_argument("--out", type=a_path, metavar="DIR", help="folder to write to (default: RUN/recommended)")
    parser.add_number("--n-images", 256, "held-out images that criteria are measured on", low=16, high=2**20)
    parser.add_number("--train-images", TRAIN_IMAGES, "train images that readers and directions are taken from", low=16, high=2**20)
    parser.add_number("--lookahead", 0, "real steps of criterion lookahead; 0 leaves it out", low=0, high=10**6, metavar="K")
    parser.add_argument("--seed", type=seed, default=0, help="seed of times, noise and controls (default: 0)")
    parser.add_argument("--forks", type=a_path, metavar="DIR", help="what `gsnr fork --out` wrote of this checkpoint: is the pick right?")
    parser.add_argument("--validate", action="store_true", help="train forks of every row first, to OUT/forks")
    parser.add_number("--steps", 600, "of --validate: steps of each fork", low=1, high=10**9, metavar="S")
    parser.add_argument("--seeds", default="0,1", metavar="A,B", help="of --validate: seeds (default: 0,1)")
    parser.add_number("--lr", None, "of --validate: learning rate of the forks (default: the checkpoint's)", low=0, high=1e3, of=float, metavar="F")
    parser.add_number("--frechet", 0, "of --validate: samples for the Fréchet distance; 0 for none", low=0, high=10**6)
    parser.add_number("--jobs", 1, "of --validate: forks side by side", low=1, high=256, metavar="J")
    parser.add_argument(
        "--benefit", metavar="M", help="metric of the forks that the benefit is (default: frechet where they have it, or velocity_loss)"
    )
    return parser


def usual(subject: Subject) -> list[Row]:
    """Rows where none are named: what the data allow."""
    from gsnr.probes.common.case import row_of
    from gsnr.train import presets
    from gsnr.train.config import alignment_config
    from gsnr.train.forking.rows import parse

    depth, groups = subject.checkpoint.config.model.depth, subject.header.groups
    blocks = sorted({max(1, round(depth * k / 6)) for k in (1, 2, 3, 4)})
    there = [name for name in TARGETS if set(alignment_config(presets.ROWS[name].alignment).needs) <= groups.keys()]
    words = [f"{name}@{block}" for name in there for block in blocks] + [f"sra2@{blocks[0]}"]
    if there:
        middle = f"{there[0]}@{blocks[min(1, len(blocks) - 1)]}"
        words += [f"{middle}:{ends}" for ends in RANGED] + [f"{control}:{middle}" for control in CONTROLS]
    return [row_of(parse(word), subject, 1, {}) for word in words]


def _case(args: Namespace, out: Path, subject: Subject) -> Case:
    """Raises ValueError for rows that do not fit."""
    from gsnr.probes.common.case import Case, row_of
    from gsnr.probes.common.options import TargetOptions
    from gsnr.train.forking.rows import VANILLA, parse

    options = TargetOptions(n_images=args.n_images, seed=args.seed, **FIT)
    subject.require_images(options)
    size = subject.splits["train"].size
    if args.train_images > max(size, TRAIN_IMAGES):
        raise ValueError(f"--train-images {args.train_images}: the data have {size}")
    if args.rows is None:
        rows = usual(subject)
    else:
        words = [word for word in listed("--rows", args.rows) if word != VANILLA]
        rows = [row_of(parse(word), subject, 1, {}) for word in words]
    if len(rows) < 2:
        raise ValueError("--rows: name two rows or more, to choose between")
    return Case(
        subject=subject, rows=rows, options=options, train_images=min(args.train_images, size), lookahead=args.lookahead, out=out / "lookahead"
    )


def _forked(args: Namespace, out: Path, rows: list[Row]) -> Path | None:
    """Where forks of the rows are; with --validate they are trained first."""
    if not args.validate:
        return args.forks
    from gsnr.train import fork

    length = ["--steps", str(args.steps), "--seeds", args.seeds, "--frechet", str(args.frechet), "--jobs", str(args.jobs)]
    rate = [] if args.lr is None else ["--lr", str(args.lr)]
    words = ["--ckpt", str(args.ckpt), "--rows", ",".join(row.label for row in rows), "--out", str(out / "forks"), *length, *rate]
    fork.main(words)
    return out / "forks"


def _draw(out: Path) -> Path:
    """The figure, from the table."""
    from gsnr.figures.command import find, table_of
    from gsnr.figures.style import save

    path = out / "recommend.png"
    with files.together() as replacing:
        save(find("fig_recommend").draw(table_of([out], find("fig_recommend"))), [path], replacing)
    return path


def _recommended(args: Namespace, criteria: list[str], out: Path) -> Recommendation:
    from gsnr.probes.common import recommendation
    from gsnr.probes.common.subject import load

    subject = load(args.ckpt, data=args.data, vae_name=None, model=None, weights="ema", control=False)  # rows name their own
    case = _case(args, out, subject)
    known = [] if args.validate or args.forks is None else recommendation.benefits(args.forks, subject.checkpoint, args.benefit)
    values = recommendation.measure(case, criteria)
    forked = _forked(args, out, case.rows)
    if args.validate and forked is not None:
        known = recommendation.benefits(forked, subject.checkpoint, args.benefit)
    return recommendation.Recommendation(case=case, values=values, benefits=known)


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    every = plugins.names("criteria")
    usual_ones = [name for name in every if name != "lookahead" or args.lookahead]
    criteria = usual_ones if args.criteria is None else list(listed("--criteria", args.criteria, every))
    for name in criteria:
        plugins.get("criteria", name)
    if "lookahead" in criteria and not args.lookahead:
        raise ValueError("--criteria lookahead: needs --lookahead K, how many steps")
    if args.data is not None and (args.validate or args.lookahead):
        raise ValueError("--data: forks train on the data of the checkpoint; leave out --validate and --lookahead")
    if args.validate and args.forks is not None:
        raise ValueError("--validate trains forks, --forks reads those that are there; name one of them")
    if args.validate:
        from gsnr.train.evaluate import check_frechet
        from gsnr.train.grid import seeds_of

        seeds_of(args.seeds)
        check_frechet(args.frechet)
    if args.benefit is not None and not args.validate and args.forks is None:
        raise ValueError("--benefit: is of forks; name them with --forks, or train them with --validate")
    from gsnr.train.runs import checkpoint

    loaded = checkpoint.locate(args.ckpt)
    run = loaded.parent.parent
    if args.out is None and not (run / "LAST").is_file():
        raise ValueError(f"{loaded}: lies in no run folder; say where to write with --out")
    out = args.out or run / "recommended"
    files.check_writable(out, "--out")
    found = _recommended(args, criteria, out)
    from gsnr.probes.common import recommendation

    words = recommendation.write(out, found)
    print(words)
    figure = _draw(out)
    print(f"wrote recommend.parquet, recommend.csv, recommend.md and {figure.name} to {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    commands.run("recommend")
