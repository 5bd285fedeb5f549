"""`gsnr train`, `gsnr-train`: trains a SiT with or without an alignment target.

gsnr train --preset demo --out runs/demo                      minutes on two CPU cores
gsnr train --preset demo --out runs/demo --steps 1600 --resume
torchrun --nproc-per-node 8 -m gsnr train --preset ahpa-xl2 --data.path CACHE --out runs/ahpa-xl2
gsnr train --preset router-lookup-b2 --data.path CACHE --out runs/lookup      a row of Table D.17; --list-presets shows them all
gsnr train --preset ahpa-b2 --data.path CACHE --alignment uniform --alignment.source mid --out runs/uniform-mid
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from gsnr.commandline import Parser


def _option_lines() -> list[str]:
    """One line an option of the configuration, for --help."""
    from gsnr import plugins
    from gsnr.options import choices
    from gsnr.train.config import TrainConfig

    def line(flag: str, f: Field) -> str:
        default = f.default if f.default is not MISSING else ""
        valid = f": {', '.join(choices(f))}" if choices(f) else ""
        return f"  --{flag.replace('_', '-'):28} {f.metadata.get('help', '')}{valid}{f' [{default}]' if default not in ('', None, ()) else ''}"

    lines = ["", "options of the configuration [default before the preset]:"]
    for f in fields(TrainConfig):
        if is_dataclass(f.default):
            lines += [line(f"{f.name}.{sub.name}", sub) for sub in fields(f.default)]
        elif f.name != "alignment" and f.name not in ("steps", "seed"):
            lines.append(line(f.name, f))
    lines += ["", "options of alignments [default]:", f"  --alignment                    {', '.join(plugins.names('alignments'))}"]
    owners: dict[str, list[str]] = {}
    for name in plugins.names("alignments"):
        for f in fields(plugins.find("alignments", name).Config):
            owners.setdefault(line(f"alignment.{f.name}", f), []).append(name)
    return lines + [text if len(names) == len(plugins.names("alignments")) else f"{text} ({', '.join(names)})" for text, names in owners.items()]


def overrides(rest: list[str]) -> dict[str, Any]:
    """["--optim.lr", "1e-4", "--batch=8"] -> {"optim.lr": "1e-4", "batch": "8"}. Raises ValueError for what is no flag with a value."""
    flat: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}")
        key, equals, inline = word[2:].partition("=")
        value = inline if equals else next(words, None)
        if value is None:
            raise ValueError(f"{word} needs a value")
        flat[key.replace("-", "_")] = value
    return flat


def _list_presets() -> None:
    """One line a row: the table of the paper it belongs to, the sizes it comes in, and what it sets."""
    from gsnr.train import presets

    print(f"{'ROW':20} {'TABLE':19} {'SIZES (preset = ROW-SIZE)':31} ALIGNMENT")
    for name, row in presets.ROWS.items():
        options = ", ".join(f"{key} {value}" for key, value in row.alignment.items() if key not in ("name", "parts"))
        if "parts" in row.alignment:
            options = f"{len(row.alignment['parts'])} of uniform deep, at blocks {', '.join(str(part['tap']) for part in row.alignment['parts'])}"
        print(f"{name:20} {row.table:19} {' '.join((*row.sizes, 'demo')):31} {row.alignment['name']}{': ' + options if options else ''}")
    print("\ndemo is ahpa-demo; smoke is a demo of seconds, for tests. At size demo, a block that a row names, 2, 3, 4 or 8 of B's 12, is")
    print("1, 2, 3 or 4 of 6; methods take the block that their own rule gives a model of depth 6.")
    print("repa, irepa, sra, sra2 keep REPA's learning rate 1e-4 and clip 1 at full size; AHPA's: --optim.lr 2e-4 --optim.clip 2.")


def main(argv: list[str]) -> int:
    from gsnr.train import presets

    wants_help = "-h" in argv or "--help" in argv
    assert __doc__ is not None
    parser = Parser("gsnr train", __doc__, "\n".join(_option_lines()) if wants_help else None)
    parser.add_argument(
        "--preset", metavar="NAME", help="what to start from: demo, smoke, ahpa-b2, repa-xl2, router-lookup-demo, ... (--list-presets)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON laid over the preset (a run's config.json will do)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder to create or, with --resume, to continue")
    parser.add_argument("--steps", type=int, metavar="N", help="steps in all")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of everything random")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out (start it if there is none); --steps may grow")
    parser.add_argument("--list-presets", action="store_true", help="list the presets with the table of the paper they belong to, and stop")
    args, rest = parser.parse_known_args(argv)
    if args.list_presets:
        _list_presets()
        return 0
    if args.out is None or (args.preset is None and args.config is None):
        parser.error("--out and one of --preset and --config are needed")
    from gsnr.train.config import nest, resolve

    flat = overrides(rest) | {k: v for k in ("steps", "seed") if (v := getattr(args, k)) is not None}
    preset = presets.find(args.preset) if args.preset else {}
    config = resolve(preset, _read(args.config), nest(flat))
    from gsnr.train.trainer import train

    train(config, args.out if args.out.name else args.out.absolute(), args.resume)
    return 0


def _read(path: Path | None) -> dict[str, Any]:
    """A configuration file; the wrapper that a run's config.json has around it is taken off."""
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path}: cannot be read as JSON ({error})") from error
    values = values.get("config", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: holds no mapping of options")
    return values
