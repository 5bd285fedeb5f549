"""`gsnr probe`, `gsnr-probe`: measures a checkpoint and writes tables that figures and notebooks read.

    gsnr probe --ckpt runs/demo                          every probe that applies; tables in runs/demo/probes
    gsnr probe --ckpt runs/demo --probe alignment --targets all
    gsnr probe --ckpt runs/sit runs/ahpa runs/repa --out tables      on the same images, times and noise: one table
    gsnr probe --ckpt runs/demo/checkpoints/0000400 --probe alignment --bins 5 --out tables
    gsnr probe --ckpt 0400000.pt --data CACHE --out tables   a file of SiT, REPA, iREPA or SRA, converted on the fly
    gsnr probe --list
    gsnr probe --ckpt runs/demo --dry-run

A measurement that is there already, with the same settings, is not repeated; one that was interrupted goes on with --resume. G-SNR is the
ratio ||E g||^2 / tr Cov(g) of the per-sample gradient of one loss; README.md says how to read it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from gsnr import files, plugins, table
from gsnr.commandline import Parser, seed
from gsnr.probes.common import summary
from gsnr.probes.common.bins import SPACINGS
from gsnr.probes.common.forecast import Forecast, forecast
from gsnr.probes.common.resume_cache import ResumeCache, Rows


def names() -> list[str]:
    """Probes, by their files."""
    return plugins.names("probes")


def find(name: str) -> ModuleType:
    """The probe of that name. Raises ValueError listing the valid ones."""
    return plugins.find("probes", name)


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr probe", __doc__)
    parser.add_argument(
        "--ckpt",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="run folder (its last checkpoint), checkpoint folder, or .pt file of SiT, REPA, iREPA, SRA; several make one table",
    )
    parser.add_argument("--probe", metavar="A,B", help=f"probes to run (default: all that apply): {', '.join(names())}")
    parser.add_argument("--bins", type=int, default=10, metavar="K", help="bins of t (default: 10)")
    parser.add_argument("--spacing", default="t", metavar="t|logsnr", help="bins equal in t, or in logSNR from t = 0.01 to 0.99 (default: t)")
    parser.add_argument(
        "--targets", metavar="A,B", help="alignment targets: all, or own, uniform_mid, sra2, ... (default: own,uniform_mid,uniform_deep)"
    )
    parser.add_argument("--controls", default="shuffled,constant", metavar="A,B", help="of the first target, or none (default: shuffled,constant)")
    parser.add_argument("--projector", default="fit,ckpt", metavar="A,B", help="fit alike, ckpt (the checkpoint's own), fresh (default: fit,ckpt)")
    parser.add_argument("--n-images", type=int, default=256, metavar="N", help="held-out images, each used once in every bin (default: 256)")
    parser.add_argument(
        "--first-image", type=int, default=0, metavar="I", help="number of the first of them: disjoint ones check a finding (default: 0)"
    )
    parser.add_argument("--draws", type=int, default=1, metavar="K", help="draws of t and noise per image; n still counts images (default: 1)")
    parser.add_argument("--engine", default="auto", help="how per-sample gradients are computed: auto, loop, vmap, ghost (default: auto)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the tables (default: RUN/probes; needed for several)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of times, noise and projector fits (default: 0)")
    parser.add_argument("--batch-ref", type=int, default=256, metavar="B", help="batch size B of the column gsnr_batch = B * gsnr (default: 256)")
    parser.add_argument("--fit-steps", type=int, default=1000, metavar="N", help="steps each target's projector is fitted for (default: 1000)")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights of the checkpoint (default: ema)")
    parser.add_argument("--data", metavar="CACHE", help="cache to measure on (default: the one the checkpoint was trained on)")
    parser.add_argument("--router", type=Path, metavar="RUN", help="checkpoint whose alignment is target `own`, for a backbone trained without it")
    parser.add_argument("--swap", metavar="CACHE,CACHE", help="caches of the same images by other VAEs, for probe vae_swap")
    parser.add_argument("--vae", metavar="ID", help="check that the cache was made with this VAE")
    parser.add_argument("--model", metavar="NAME", help="of a .pt file whose size is not published: SiT-DEPTHxWIDTHxHEADS/PATCH")
    parser.add_argument("--save-sums", action="store_true", help="also save each cell's gradient sums (twice the parameters), to merge results later")
    parser.add_argument("--resume", action="store_true", help="continue a measurement that was interrupted")
    parser.add_argument("--overwrite", action="store_true", help="replace tables, and drop interrupted measurements, of other settings")
    parser.add_argument("--list", action="store_true", help="list the probes and stop")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured, with an estimate of time and memory, and stop")
    return parser


def _positive(args: Any) -> None:
    for flag, value, least in (
        ("--bins", args.bins, 1),
        ("--n-images", args.n_images, 3),
        ("--first-image", args.first_image, 0),
        ("--draws", args.draws, 1),
        ("--fit-steps", args.fit_steps, 1),
        ("--batch-ref", args.batch_ref, 1),
    ):
        if value < least:
            raise ValueError(f"{flag} {value}: must be at least {least}")


def _names(flag: str, text: str | None) -> tuple[str, ...]:
    """The names of a list with commas. Raises ValueError for one that is empty or named twice."""
    listed = () if text is None else tuple(text.split(","))
    for name in listed:
        if not name or listed.count(name) > 1:
            raise ValueError(f"--{flag} {text!r}: names {'nothing' if not name else f'{name!r} twice'}; a list such as A,B is needed")
    return listed


def _choose(asked: tuple[str, ...], subjects: list[Any], options: Any) -> list[str]:
    """The probes to run; if none is asked for, those that apply. Raises ValueError for one that is asked for and cannot run."""
    chosen = []
    for name in asked or names():
        reason = next((why for subject in subjects if (why := find(name).cannot(subject, options)) is not None), None)
        if reason is None:
            chosen.append(name)
        elif asked:
            raise ValueError(f"--probe {name}: {reason}")
        else:
            print(f"skipping {name}: {reason}")
    return chosen


def _is_there(path: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """True where the table has these settings already. Raises ValueError where it has others and may not be replaced."""
    if not path.exists() or overwrite:
        return False
    was = table.provenance(path)["settings"]
    changed = [key for key, value in settings.items() if was.get(key) != value]
    if changed:
        raise ValueError(
            f"{path}: measured with other settings ({changed[0]} was {was.get(changed[0])!r}, now {settings[changed[0]]!r}); "
            "add --overwrite, or name another folder with --out"
        )
    return True


def _identity(subject: Any) -> dict[str, Any]:
    """What is measured: a checkpoint and its data."""
    c = subject.checkpoint
    headers = repr((subject.header, *(header for _, header, _ in subject.swaps)))
    router = {"router": subject.router.sha} if subject.router else {}
    return {"run": c.run_name, "sha": c.sha, "step": c.step, "data": hashlib.sha256(headers.encode()).hexdigest()} | router


def _measure(name: str, subjects: list[Any], options: Any, settings: dict[str, Any], out: Path, args: Any) -> None:
    """One probe of every checkpoint, into one table; what is finished stays beside it until it is."""
    kept = ResumeCache(out / f".{name}.parts")
    if args.overwrite and not args.resume:
        kept.remove()
    kept.begin(settings, args.resume)
    rows: Rows = {}
    notes = []
    try:
        for index, subject in enumerate(subjects):
            sums = out / f"{name}.sums" / (subject.checkpoint.run_name if len(subjects) > 1 else "") if args.save_sums else None
            found, its_notes = find(name).run(subject, options, ResumeCache(kept.folder / f"ckpt{index}"), sums)
            notes.append(_identity(subject) | {"config": asdict(subject.checkpoint.config), "notes": its_notes})
            for kind, values in found.items():
                rows.setdefault(kind, []).extend(values)
    finally:
        if not kept.finished:
            kept.remove()
    provenance = {"settings": settings, "checkpoints": notes, "created": subjects[0].created}
    main_kind = find(name).KIND
    for kind in [*(kind for kind in rows if kind != main_kind), main_kind]:  # the table itself last: it says that all is there
        if rows[kind]:
            table.write(out / (f"{name}.parquet" if kind == main_kind else f"{name}.{kind}.parquet"), kind, rows[kind], provenance)
    kept.remove()
    print(f"{out / name}.parquet: {len(rows[main_kind])} rows")


def _say(chosen: list[str], todo: list[str], subjects: list[Any], options: Any, out: Path) -> None:
    """What would be measured, how long it would take, and where it would be written."""
    total = Forecast(0.0, 0)
    for name in chosen:
        print(f"{name}: {'would write' if name in todo else 'is there already:'} {out / f'{name}.parquet'}")
        for subject in subjects:
            print("\n".join(f"  {line}" for line in find(name).plan(subject, options)))
            if name in todo:
                found = forecast(find(name), subject, options)
                total += found
                print(f"  {found}", flush=True)
    print(f"in all {total} (from running a small piece of each on this machine)")


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        for name in names():
            print(f"{name:12} {find(name).SUMMARY}")
        return 0
    if args.ckpt is None:
        parser.error("--ckpt is needed (or --list)")
    if len(args.ckpt) > 1 and args.out is None:
        parser.error("--out is needed for several checkpoints")
    _positive(args)
    lists = {"probe": args.probe, "targets": args.targets, "controls": args.controls, "projector": args.projector, "swap": args.swap}
    split = {flag: _names(flag, text) for flag, text in lists.items()}
    for name in split["probe"]:
        find(name)
    if args.spacing not in SPACINGS:
        raise ValueError(f"--spacing {args.spacing!r} does not exist; choose from {', '.join(SPACINGS)}")
    from gsnr import engines

    if args.engine != "auto":
        engines.find(args.engine)
    module = import_module("gsnr.probes.common.subject")
    named = {"targets": split["targets"], "swap": split["swap"], "projectors": split["projector"]}
    named["controls"] = () if split["controls"] == ("none",) else split["controls"]
    plain = {key: getattr(args, key) for key in module.Options.__dataclass_fields__ if key not in named}
    options = module.Options(**plain | named | {"router": str(args.router) if args.router else None})
    opening = {"data": args.data, "vae_name": args.vae, "model": args.model, "weights": args.weights, "router": args.router, "swap": options.swap}
    subjects = [module.load(ckpt, **opening) for ckpt in args.ckpt]
    (called, times), *_ = Counter(f"{s.checkpoint.run_name}/{s.checkpoint.folder.name}" for s in subjects).most_common(1)
    if times > 1:
        raise ValueError(f"--ckpt: {called} is the name of two checkpoints, and tables tell them apart by that; rename a run folder")
    for subject in subjects:
        subject.require_images(options)
    chosen = _choose(split["probe"], subjects, options)
    out = args.out or subjects[0].default_out
    for subject in subjects:
        print(f"{subject.checkpoint.folder}: step {subject.checkpoint.step}, {args.weights} weights; tables in {out}")
    settings = json.loads(json.dumps(asdict(options) | {"weights": args.weights, "checkpoints": [_identity(subject) for subject in subjects]}))
    todo = [name for name in chosen if not _is_there(out / f"{name}.parquet", settings, args.overwrite)]
    if args.dry_run:
        _say(chosen, todo, subjects, options, out)
        return 0
    files.check_writable(out, "--out")
    for name in chosen:
        if name not in todo:
            print(f"{out / name}.parquet: there already, with these settings")
            continue
        _measure(name, subjects, options, settings, out, args)
    if "alignment" in chosen:
        print(summary.summary(table.read(out / "alignment.parquet")))
    for name in ("alignment.metrics", "controls"):
        if name.split(".")[0] in chosen and (flagged := summary.easy(table.read(out / f"{name}.parquet"))):
            print(flagged)
            break
    return 0
