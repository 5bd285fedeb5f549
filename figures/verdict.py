"""`gsnr verdict`: what a run's alignment table lets one say: which target, at which t, with or against denoising.

    gsnr verdict --run runs/demo
    gsnr verdict --run tables --group "block 2" --csv verdict.csv

It prints, per target and range of t, whether the gradient is resolved, stands above its control, goes with or against denoising, and whether the
target is easy; then two sentences. Nothing is measured: `gsnr probe --probe alignment` does that. docs/reading.md says how to read it.

    gsnr verdict --run runs/repa --stop-rule rho --stop-rule.limit 0.5      where would that rule have released the alignment?
    gsnr verdict --run forks/800 forks/1600 --stop-rule fork --stop-rule.row repa
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from gsnr import commands, files, plugins, verdicts
from gsnr.commandline import Parser, a_path
from gsnr.figures import command as drawing
from gsnr.options import declared_options, help_of_several, kinds, values_of
from gsnr.stopping import offline


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr verdict", __doc__, _teach)
    parser.add_runs()
    parser.add_argument("--group", default="all", help="group of parameters: all, block 2, attention, ... (default: all, the backbone up to the tap)")
    parser.add_argument("--csv", type=a_path, metavar="FILE", help="write the ranges there, too")
    parser.add_argument("--stop-rule", metavar="RULE", help="of a run's logs instead: where it would have released the alignment")
    return parser


def _rules() -> dict[str, type]:
    """Stop rule -> the class of its options, without what its file imports."""
    return {name: declared_options(plugin.path, "Config") for name, plugin in plugins.every("rules").items()}


def _teach(_: list[str]) -> list[str]:
    return ["options of stop rules [default] (whose they are):", *help_of_several(_rules(), "stop_rule.")]


def _asked(parser: Parser, rule: str | None, rest: list[str], runs: list[Path]) -> list[offline.Outcome]:
    """What the rule says of the runs. Raises ValueError for words that are no options of its."""
    if rule is None:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    known = {name: kind for cls in _rules().values() for name, kind in kinds(cls, "stop_rule.").items()}
    values = values_of(rest, known, parser.flags)
    return offline.asked({"name": rule} | {key.removeprefix("stop_rule."): value for key, value in values.items()}, runs)


def main(argv: list[str]) -> int:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.stop_rule is not None and args.csv is not None:
        parser.error("--csv writes ranges of a table; with --stop-rule there are none")
    if args.stop_rule is not None or rest:
        print("\n".join(map(str, _asked(parser, args.stop_rule, rest, args.run))))
        return 0
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
