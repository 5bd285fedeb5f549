"""`python -m figures`: draws every figure that a run's tables allow, as PNG and PDF.

python -m figures --run runs/demo                     into runs/demo/figures
python -m figures --run runs/demo --figure fig5_router --out figures-for-the-paper
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

from figures.style import save
from gsnr import table
from gsnr.commandline import Parser, run


def names() -> list[str]:
    """Figures, by the files that draw from a table."""
    package = import_module("figures")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("fig"))


def find(name: str) -> ModuleType:
    """The figure of that name. Raises ValueError listing the valid ones."""
    if name not in names():
        raise ValueError(f"figure {name!r} does not exist; choose from {', '.join(names())}")
    return import_module(f"figures.{name}")


def main(argv: list[str]) -> int:
    assert __doc__ is not None
    parser = Parser("python -m figures", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder with probes/*.parquet")
    parser.add_argument("--figure", metavar="A,B", help=f"figures to draw (default: all whose table is there): {', '.join(names())}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: RUN/figures)")
    args = parser.parse_args(argv)
    probes = args.run / "probes"
    asked = args.figure.split(",") if args.figure else [name for name in names() if (probes / f"{find(name).TABLE}.parquet").is_file()]
    if not asked:
        raise ValueError(f"{probes}: no tables; measure first with `python -m gsnr.probe --ckpt {args.run}`")
    out = args.out or args.run / "figures"
    written = []
    for name in asked:
        figure = find(name)
        path = probes / f"{figure.TABLE}.parquet"
        if not path.is_file():
            raise ValueError(f"{path}: no such table; measure it with `python -m gsnr.probe --ckpt {args.run} --probe {figure.TABLE}`")
        drawn = figure.draw(table.read(path))
        for suffix in ("png", "pdf"):
            written.append(out / f"{name}.{suffix}")
            save(drawn, written[-1])
    print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    run(main)
