"""`gsnr verdict`: what a run's alignment table lets one say: which target, at which t, with or against denoising.

    gsnr verdict --run runs/demo
    gsnr verdict --run tables --group "block 2" --csv verdict.csv

It prints, per target and range of t, whether the gradient is resolved, stands above its control, goes with or against denoising, and whether the
target is easy; then two sentences. Nothing is measured: `gsnr probe --probe alignment` does that. docs/reading.md says how to read it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gsnr import commands, files, verdicts
from gsnr.commandline import Parser, a_path
from gsnr.figures import command as drawing


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr verdict", __doc__)
    parser.add_runs()
    parser.add_argument("--group", default="all", help="group of parameters: all, block 2, attention, ... (default: all, the backbone up to the tap)")
    parser.add_argument("--csv", type=a_path, metavar="FILE", help="write the ranges there, too")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.csv is not None:
        files.check_output(args.csv, "--csv", ".csv")
    found = [one for folder in args.run for one in of_run(folder, args.group)]
    print("\n\n".join(map(str, found)))
    if args.csv is not None:
        files.write_text(args.csv, pd.concat([one.to_frame().assign(verdict=one.title) for one in found]).to_csv(index=False))
    return 0


def of_run(folder: Path, group: str = "all") -> list[verdicts.Verdict]:
    """On every checkpoint of a run's or folder's alignment table. Raises ValueError where there is none, naming it, or no such group."""
    found = drawing.tables_in(folder)
    if not (found / verdicts.TABLE).exists():
        raise ValueError(f"{found / verdicts.TABLE}: no such table; measure first with `gsnr probe --ckpt {folder} --probe alignment`")
    return verdicts.of_tables(found, group)


if __name__ == "__main__":
    commands.run("verdict")
