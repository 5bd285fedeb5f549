"""`gsnr train`, `gsnr-train`: trains a SiT, or an MMDiT on captions, with or without an alignment target.

gsnr train --preset demo --out runs/demo                      minutes on two CPU cores
gsnr train --preset demo --out runs/demo --steps 1600 --resume
torchrun --nproc-per-node 8 -m gsnr train --preset ahpa-xl2 --data CACHE --out runs/ahpa-xl2
gsnr train --preset router-lookup-b2 --data CACHE --out runs/lookup      a row of Table D.17; --list-presets shows them all
gsnr train --preset ahpa-b2 --data CACHE --alignment uniform --alignment.source mid --out runs/uniform-mid
gsnr train --preset repa-b2 --data CACHE --schedule stop --schedule.at 50000 --out runs/early      when to stop an alignment
gsnr train --preset repa-b2 --data CACHE --gsnr-every 5000 --gsnr-bins 8 --stop-rule rho --out runs/rho      or until it is held back
gsnr train --preset mmdit-coco-ahpa --data CACHE --out runs/mmdit      text to image: a cache with captions (docs/text.md)
gsnr train --preset ahpa-b2 --help                            its values, and the options of its alignment
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gsnr import files, plugins
from gsnr.commandline import Parser, a_path, no_path
from gsnr.options import build, check_ranges, check_whose, declared_options, help_lines, help_of_several, kinds, values_of
from gsnr.train.cache_root import DEMOS


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr train", __doc__, _teach)
    parser.add_argument(
        "--preset", metavar="NAME", help="what to start from: demo, smoke, ahpa-b2, repa-xl2, router-lookup-demo, ... (--list-presets)"
    )
    parser.add_argument("--config", type=a_path, metavar="FILE", help="JSON laid over the preset (a run's config.json will do)")
    parser.add_argument("--out", type=a_path, metavar="DIR", help="run folder to create or, with --resume, to continue")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out (start it if there is none); --steps may grow")
    parser.add_argument("--list-presets", action="store_true", help="list the presets with the table of the paper they belong to, and stop")
    return parser


def _options(kind: str) -> dict[str, type]:
    """alignment, or schedule -> the class of its options, without what its file imports."""
    return {name: declared_options(plugin.path, "Config") for name, plugin in plugins.every(kind).items()}


def _teach(words: list[str]) -> list[str]:
    """The options of the configuration, each once. With --preset, --config or --alignment: their values as defaults, and of alignments theirs."""
    from gsnr.train import presets
    from gsnr.train.config import PLUGGED, TrainConfig, nest, overlay

    args, rest = _parser().parse_known_args(words)
    flat = {key: value for key, value in overrides(rest).items() if key.partition(".")[0] not in PLUGGED or key in PLUGGED}
    layers = [presets.find(args.preset) if args.preset else {}, _read(args.config), nest(flat)]
    values = asdict(TrainConfig())
    for layer in layers:
        values = overlay(values, layer)
    chosen, schedules = values.pop("alignment"), [values.pop("schedule"), values.pop("velocity_schedule")]
    rule = values.pop("stop_rule")["name"]
    config = build(TrainConfig, values)
    lines = ["options of the configuration [default]; --data is short for --data.path:", *help_lines(config, leave_out=tuple(PLUGGED))]
    lines += _teach_schedules(*schedules)
    rules = _options("rules")
    named = f"  {'--stop-rule':30} when the alignment is released; not --alignment.release, a router's: {', '.join(rules)} [{rule}]"
    lines += ["", "options of stop rules [default] (whose they are):", named, *help_of_several(rules, "stop_rule.")]
    if any("alignment" in layer for layer in layers):
        name = chosen.pop("name", "none")
        cls = declared_options(plugins.get("alignments", name).path, "Config")
        options = cls(**{f.name: chosen[f.name] for f in fields(cls) if f.name in chosen})
        shown = options if chosen.get("parts") else options.for_depth(config.model.depth)
        return [*lines, "", f"--alignment {name}; its options [default]:", *help_lines(shown, "alignment.")]
    every = _options("alignments")
    named = f"  {'--alignment':30} {', '.join(every)} [none]"
    return [*lines, "", "options of alignments [default] (whose they are):", named, *help_of_several(every, "alignment.")]


def _teach_schedules(schedule: dict[str, Any], velocity: dict[str, Any]) -> list[str]:
    """Lines of --help on schedules, whose options are those of --velocity-schedule too."""
    every = _options("schedules")
    named = [
        f"  {'--schedule':30} of the alignment loss, over steps or t: {', '.join(every)} [{schedule['name']}]",
        f"  {'--velocity-schedule':30} of the velocity loss, one of the same, with --velocity-schedule.OPTION [{velocity['name']}]",
    ]
    return ["", "options of schedules [default] (whose they are):", *named, *help_of_several(every, "schedule.")]


def _known() -> dict[str, str]:
    """Every option -> its type as written, those of all alignments and schedules included."""
    from gsnr.train.config import PLUGGED, TrainConfig

    known = {"data": "str", **kinds(TrainConfig)}
    for section, (kind, _) in PLUGGED.items():
        known |= {section: "str", f"{section}.name": "str"}
        for cls in _options(kind).values():
            known |= kinds(cls, f"{section}.")
    return known


def overrides(rest: list[str]) -> dict[str, Any]:
    """["--optim.lr", "1e-4", "--data=demo", "--compile"] -> {"optim.lr": "1e-4", "data.path": "demo", "compile": "true"}.

    Raises ValueError for what is no flag of the configuration, and for one that lacks its value."""
    flat = values_of(rest, _known(), _parser().flags)
    return {"data.path" if key == "data" else key: value for key, value in flat.items()}


def _list_presets() -> None:
    """One line a row: the table of the paper it belongs to, the sizes it comes in, and what it sets."""
    from gsnr.train import presets, text_presets

    print(f"{'ROW':20} {'TABLE':19} {'SIZES (preset = ROW-SIZE)':31} ALIGNMENT")
    for name, row in presets.ROWS.items():
        options = ", ".join(f"{key} {value}" for key, value in row.alignment.items() if key not in ("name", "parts"))
        if "parts" in row.alignment:
            parts = row.alignment["parts"]
            taps = [str(part["tap"]) for part in parts if "tap" in part]
            options = f"{len(parts)} of uniform deep, at blocks {', '.join(taps)}" if taps else ", ".join(part["name"] for part in parts)
        its = [f"; {section.replace('_', ' ')} {schedule['name']}" for section, schedule in row.schedules.items()]
        said = f"{row.alignment['name']}{': ' + options if options else ''}{''.join(its)}"
        print(f"{name:20} {row.table:19} {' '.join((*row.sizes, 'demo')):31} {said}")
    print(f"\ntext to image, an MMDiT: {', '.join(text_presets.NAMES)}")
    print("\ndemo is ahpa-demo; smoke is a demo of seconds, for tests. At size demo, a block that a row names, 2, 3, 4 or 8 of B's 12, is")
    print("1, 2, 3 or 4 of 6; methods take the block that their own rule gives a model of depth 6.")
    print("repa and the other methods from elsewhere keep REPA's learning rate 1e-4 and clip 1 at full size; AHPA's: --optim.lr 2e-4 --optim.clip 2.")


def _check_early(layers: list[dict[str, Any]], out: Path, resume: bool) -> None:
    """What can be told from words and the disk, before seconds go into imports. Raises ValueError as the trainer would."""
    from gsnr.train.config import PLUGGED, TrainConfig, overlay
    from gsnr.train.runs import place

    values = asdict(TrainConfig())
    for layer in layers:
        values = overlay(values, layer)
    config = build(TrainConfig, values)
    check_ranges(config)
    for section, (kind, usual) in PLUGGED.items():
        values = getattr(config, section)
        check_whose(kind, section, values, usual)
        cls = declared_options(plugins.get(kind, values.get("name", usual)).path, "Config")
        check_ranges(build(cls, {key: value for key, value in values.items() if key != "name"}, f"{section}."), f"{section}.")
    place.holds_run(out, resume)
    data = config.data.path
    if data not in ("", *DEMOS) and no_path(data) is None and not Path(data).exists():
        raise ValueError(f"--data.path {data}: not a gsnr cache (no such folder); make one with `gsnr prepare`, or name `demo`")


def main(argv: list[str]) -> int:
    from gsnr.train import presets
    from gsnr.train.config import nest, resolve

    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.list_presets:
        _list_presets()
        return 0
    flat = overrides(rest)
    if args.out is None:
        parser.error("--out is needed, the run folder to create")
    layers = [presets.find(args.preset) if args.preset else {}, _read(args.config), nest(flat)]
    _check_early(layers, args.out, args.resume)
    config = resolve(*layers)
    for key, used, wanted in (
        ("gsnr_bins", config.gsnr_every, "--gsnr-every"),
        ("gsnr_images", config.gsnr_every, "--gsnr-every"),
        ("class_token_weight", config.model.extra_token, "--model.extra-token"),
    ):
        if key in flat and not used:
            raise ValueError(f"--{key.replace('_', '-')}: changes nothing without {wanted}")
    from gsnr.train.trainer import train

    train(config, args.out if args.out.name else args.out.absolute(), args.resume)
    return 0


def _read(path: Path | None) -> dict[str, Any]:
    """A configuration file; the wrapper that a run's config.json has around it is taken off."""
    if path is None:
        return {}
    try:
        values = files.read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path}: cannot be read as JSON ({error})") from error
    values = values.get("config", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: holds no mapping of options")
    return values
