"""`gsnr probe`: measures a checkpoint and writes tables that figures and notebooks read.

    gsnr probe --ckpt runs/demo                          every probe that applies; tables in runs/demo/probes
    gsnr probe --ckpt runs/demo --probe alignment --targets all
    gsnr probe --ckpt runs/sit runs/ahpa runs/repa --out tables      on the same images, times and noise: one table
    gsnr probe --ckpt runs/demo/checkpoints/0000400 --probe alignment --bins 5 --out tables
    gsnr probe --ckpt 0400000.pt --data CACHE --out tables   a file of SiT, REPA, iREPA, SRA or REG, converted on the fly
    gsnr probe --list
    gsnr probe --ckpt runs/demo --dry-run
    gsnr probe --ckpt runs/demo --probe alignment --check     again with another fit, seed and images: which findings stay?

A measurement that is there already, with the same settings, is not repeated; one that was interrupted goes on with --resume. G-SNR is the
ratio ||E g||^2 / tr Cov(g) of the per-sample gradient of one loss; docs/reading.md says how to read it.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gsnr import files, plugins
from gsnr.commandline import Parser, a_cache, a_path, choose, listed, tell
from gsnr.options import build, check_ranges, declared_options, help_of_several, kinds, values_of
from gsnr.train.cache_root import DEMOS

if TYPE_CHECKING:
    from gsnr.probes.common.measuring import Measurement
    from gsnr.probes.common.options import ProbeOptions
    from gsnr.probes.common.subject import Subject


def names() -> list[str]:
    """Probes, by their files."""
    return plugins.names("probes")


def _classes() -> dict[str, type]:
    """probe -> the class of its options, without what its file imports."""
    return {name: declared_options(plugin.path, "Options") for name, plugin in plugins.every("probes").items()}


def _teach(words: list[str]) -> list[str]:
    """What --help says of the probes and their options; with --probe of these alone."""
    asked = _asked(_parser().parse_known_args(words)[0].probe)
    classes = {name: cls for name, cls in _classes().items() if name in asked or not asked}
    said = [f"  {name:16} {plugins.constant('probes', name, 'SUMMARY')}" for name in classes]
    return ["probes:", *said, "", "options of probes [default] (whose they are, where not all have them):", *help_of_several(classes)]


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr probe", __doc__, _teach)
    parser.add_argument(
        "--ckpt",
        type=a_path,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="run folder (its last checkpoint), checkpoint folder, or .pt file of SiT, REPA, iREPA, SRA, REG; several make one table",
    )
    parser.add_argument("--probe", metavar="A,B", help=f"probes to run (default: all that apply): {', '.join(names())}")
    parser.add_argument("--out", type=a_path, metavar="DIR", help="folder for the tables (default: RUN/probes; needed for several)")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights of the checkpoint (default: ema)")
    parser.add_argument("--data", type=a_cache, metavar="CACHE", help="cache to measure on (default: the one the checkpoint was trained on)")
    parser.add_argument(
        "--align-from", type=a_path, metavar="RUN", help="checkpoint whose alignment is target `own`, for a backbone trained without it"
    )
    parser.add_argument("--vae", metavar="ID", help="check that the cache was made with this VAE")
    parser.add_argument("--model", metavar="NAME", help="of a .pt file whose size is not published: SiT-DEPTHxWIDTHxHEADS/PATCH")
    parser.add_argument("--save-sums", action="store_true", help="also save each cell's gradient sums (twice the parameters), to merge results later")
    parser.add_argument(
        "--check", action="store_true", help="measure again with half and twice the fit, another seed, other images: which findings stay?"
    )
    parser.add_argument("--resume", action="store_true", help="continue a measurement that was interrupted")
    parser.add_argument("--overwrite", action="store_true", help="replace tables, and drop interrupted measurements, of other settings")
    parser.add_argument("--list", action="store_true", help="list the probes and stop")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured, with an estimate of time and memory, and stop")
    return parser


def _asked(text: str | None) -> tuple[str, ...]:
    """The names of --probe. Raises ValueError for one that is unknown, empty or named twice."""
    asked = () if text is None else listed("--probe", text, names())
    for name in asked:
        plugins.get("probes", name)
    return asked


def _given(asked: tuple[str, ...], words: list[str]) -> dict[str, dict[str, str]]:
    """probe -> the options given to it on the command line, as they are written. Known to be good before anything heavy is imported.

    Raises ValueError for one that no probe has, or none of those asked for, and for a value that is wrong."""
    classes = _classes()
    has = {name: kinds(cls) for name, cls in classes.items()}
    chosen = asked or tuple(has)
    flat = values_of(words, {key: kind for keys in has.values() for key, kind in keys.items()}, _parser().flags)
    for key in flat:
        owners = [name for name, keys in has.items() if key in keys]
        if not set(owners) & set(chosen):
            of = f"no option of {', '.join(chosen)}, but of {', '.join(owners)}" if owners else "no option of any probe (see gsnr probe --help)"
            raise ValueError(f"--{key.replace('_', '-')}: {of}")
    given = {name: {key: value for key, value in flat.items() if key in has[name]} for name in chosen}
    for name, values in given.items():
        check_ranges(build(classes[name], values, "--"))
    return given


def _options(given: dict[str, dict[str, str]]) -> dict[str, ProbeOptions]:
    """probe -> its options, of the class that its functions know."""
    return {name: build(plugins.find("probes", name).Options, values, "--") for name, values in given.items()}


def _check_early(args: Namespace) -> None:
    """What the disk tells before seconds go into imports. Raises ValueError for a place that is not there, and weights that do not exist."""
    choose("--weights", args.weights, ("ema", "raw"))
    for ckpt in [*args.ckpt, *([args.align_from] if args.align_from else [])]:
        if not ckpt.exists():
            raise ValueError(f"{ckpt}: no such run or checkpoint folder")
    if args.data not in (None, *DEMOS) and not Path(args.data).exists():
        raise ValueError(f"--data {args.data}: not a gsnr cache (no such folder); make one with `gsnr prepare`, or name `demo`")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _open(args: Namespace) -> list[Subject]:
    """The checkpoints with their data. Raises ValueError for two that tables could not tell apart."""
    from gsnr.probes.common.subject import load

    opening = {"data": args.data, "vae_name": args.vae, "model": args.model, "weights": args.weights, "align_from": args.align_from}
    subjects = [load(ckpt, **opening) for ckpt in args.ckpt]
    (called, times), *_ = Counter(f"{s.checkpoint.run_name}/{s.checkpoint.folder.name}" for s in subjects).most_common(1)
    if times > 1:
        raise ValueError(f"--ckpt: {called} is the name of two checkpoints, and tables tell them apart by that; rename a run folder")
    return subjects


def _choose(asked: tuple[str, ...], options: dict[str, ProbeOptions], subjects: list[Subject], out: Path) -> list[Measurement]:
    """What is to be measured; if no probe is asked for, those that apply. Raises ValueError for one that is asked for and cannot run."""
    from gsnr.probes.common.measuring import Measurement

    chosen = []
    for name, its in options.items():
        probe = plugins.find("probes", name)
        for subject in subjects:
            subject.require_images(its)
        reason = next((why for subject in subjects if (why := probe.cannot(subject, its)) is not None), None)
        if reason is None:
            chosen.append(Measurement(name=name, probe=probe, options=its, subjects=subjects, out=out))
        elif asked:
            raise ValueError(f"--probe {name}: {reason}")
        else:
            print(f"skipping {name}: {reason}")
    return chosen


def _say(chosen: list[Measurement], todo: list[Measurement]) -> None:
    """What would be measured, how long it would take, and where it would be written."""
    from gsnr.probes.common.forecast import Forecast, forecast

    total = Forecast(0.0, 0)
    for one in chosen:
        print(f"{one.name}: {'would write' if one in todo else 'is there already:'} {one.path}")
        for subject in one.subjects:
            print("\n".join(f"  {line}" for line in one.probe.plan(subject, one.options)))
            if one in todo:
                found = forecast(one.probe, subject, one.options)
                total += found
                tell(f"  {found}")
    print(f"in all {total} (from running a small piece of each on this machine)")


def _check_outputs(todo: list[Measurement]) -> None:
    """Raises ValueError for a table that could not take its place, before hours go into it."""
    from gsnr.table import KINDS

    for one in todo:
        for kind in ("", *(f".{kind}" for kind in KINDS if kind != one.probe.KIND)):
            files.check_replaceable(one.out / f"{one.name}{kind}.parquet")


def _measure(chosen: list[Measurement], args: Namespace) -> None:
    """Writes the tables that are not there yet."""
    for one in chosen:
        if one.is_there(args.overwrite, args.save_sums):
            print(f"{one.path}: there already, with these settings")
        else:
            one.run(resume=args.resume, overwrite=args.overwrite, save_sums=args.save_sums)


def _check_sums(chosen: list[Measurement]) -> None:
    """Raises ValueError where --save-sums would change nothing."""
    if not any(getattr(one.probe, "SUMS", False) for one in chosen):
        having = [name for name in names() if plugins.constant("probes", name, "SUMS")]
        raise ValueError(f"--save-sums: {', '.join(one.name for one in chosen) or 'no probe'} writes no gradient sums; {', '.join(having)} do")


def _repeated(chosen: list[Measurement]) -> dict[str, dict[str, Measurement]]:
    """probe -> its repetitions, for --check; says which have nothing to check."""
    from gsnr.probes.common import checking

    without = [one.name for one in chosen if one.probe.KIND != "cells"]
    if without:
        print(f"--check: no cells to check in {', '.join(without)}")
    return {one.name: checking.measurements(one) for one in chosen if one.probe.KIND == "cells"}


def _check(chosen: list[Measurement], repeated: dict[str, dict[str, Measurement]], args: Namespace) -> None:
    """Measures what has cells again, otherwise, and says what stays."""
    from gsnr.probes.common import checking

    for one in chosen:
        if one.name in repeated:
            _measure(list(repeated[one.name].values()), args)
            print(checking.write(one, repeated[one.name]))


def _summarise(chosen: list[Measurement], out: Path) -> None:
    """The main findings, as text; the verdict last."""
    from gsnr import table, verdicts
    from gsnr.probes.common import summary

    named = {one.name for one in chosen}
    for one in chosen:
        if one.probe.KIND == "cells" and (left := summary.unconverged(table.provenance(one.path))):
            print(left)
    if "alignment" in named:
        print(summary.summary(table.read(out / "alignment.parquet")))
    for name in ("alignment.metrics", "controls"):
        path = out / f"{name}.parquet"
        if name.split(".")[0] in named and path.is_file() and (flagged := summary.easy(table.read(path))):
            print(flagged)
            break
    if "readability" in named and (said := summary.readable(table.read(out / "readability.parquet"))):
        print(said)
    if "alignment" in named:
        print("", *verdicts.of_tables(out), sep="\n")


def main(argv: list[str]) -> int:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.list:
        for name in names():
            print(f"{name:14} {plugins.constant('probes', name, 'SUMMARY')}")
        return 0
    asked = _asked(args.probe)
    given = _given(asked, rest)
    if args.ckpt is None:
        parser.error("--ckpt is needed (or --list)")
    if len(args.ckpt) > 1 and args.out is None:
        parser.error("--out is needed for several checkpoints")
    _check_early(args)
    options = _options(given)
    if any(getattr(its, "precision", "") == "tf32" for its in options.values()) and not _has_gpu():
        print("note: --precision tf32: nothing on a CPU is computed in it; the passes are in float32")
    subjects = _open(args)
    out = args.out or subjects[0].default_out
    chosen = _choose(asked, options, subjects, out)
    for subject in subjects:
        print(f"{subject.checkpoint.folder}: step {subject.checkpoint.step}, {args.weights} weights; tables in {out}")
    if args.save_sums:
        _check_sums(chosen)
    repeated = _repeated(chosen) if args.check else {}
    everything = [*chosen, *(again for of_one in repeated.values() for again in of_one.values())]
    todo = [one for one in everything if not one.is_there(args.overwrite, args.save_sums)]
    if args.dry_run:
        _say(everything, todo)
        return 0
    files.check_writable(out, "--out")
    _check_outputs(todo)
    _measure(chosen, args)
    _summarise(chosen, out)
    _check(chosen, repeated, args)
    return 0
