"""`gsnr check-plugin FILE`: holds a plug-in of yours to the contract that ours are held to.

    gsnr check-plugin my_alignment.py
    gsnr check-plugin my_probe.py my_figure.py

Says what was checked, or what is broken. `gsnr train --plugins my_alignment.py --alignment my_alignment ...` then uses it, as every command
with --plugins does, and so do processes with the environment variable GSNR_PLUGINS.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from gsnr import plugins
from gsnr.commandline import Parser, a_path


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr check-plugin", __doc__)
    parser.add_argument(
        "files", type=a_path, nargs="+", metavar="FILE", help="file of an alignment, schedule, router, projector, VAE, probe or figure"
    )
    return parser


def main(argv: list[str]) -> int:
    paths = _parser().parse_args(argv).files
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: {'a folder; name the files in it' if path.is_dir() else 'no such file'}")
        plugins.add(str(path))
    for path in paths:
        kind = plugins.kind_of(path)
        assert kind is not None  # or `add` had refused it
        plugins.get(kind, path.stem)
        print(f"{path}: {kind.removesuffix('s')} {path.stem!r}", flush=True)
        print("\n".join(f"  {line}" for line in _check(path, kind)))
    return 0


def _check(path: Path, kind: str) -> list[str]:
    """Raises ValueError for a rule that is broken, and for whatever the plug-in itself raises."""
    try:
        return import_module(plugins.KINDS[kind].contract).check(path.stem)
    except (ValueError, KeyboardInterrupt):
        raise
    except Exception as error:
        if os.environ.get("GSNR_TRACEBACK"):
            raise
        raise ValueError(f"{path}: fails ({type(error).__name__}: {error}); GSNR_TRACEBACK=1 shows where") from error
