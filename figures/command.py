"""`gsnr figures`: draws every figure that a run's tables allow, as PNG, PDF and SVG.

gsnr figures --run runs/demo                     into runs/demo/figures
gsnr figures --run runs/demo --figure fig5_router --out figures-for-the-paper
gsnr figures --run runs/raw runs/standardised --figure fig_beta          several runs side by side
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pandas as pd
from tqdm import tqdm

from gsnr import files, plugins, table
from gsnr.commandline import Parser, a_path, listed
from gsnr.figures.style import FORMATS, save

BY_RECOMMEND = {"recommend": "recommend --ckpt RUN", "judged": "recommend --ckpt RUN --forks FORKS"}  # tables that no probe writes


def names() -> list[str]:
    """Figures, by their files."""
    return plugins.names("figures")


def find(name: str) -> ModuleType:
    """The figure of that name. Raises ValueError listing the valid ones, or naming a file that lacks one of its constants."""
    figure = plugins.find("figures", name)
    for constant in ("TABLE", "TITLE", "CAPTION"):
        if not isinstance(getattr(figure, constant, None), str):
            raise ValueError(f"{plugins.get('figures', name).path}: has no text {constant}; a figure has TABLE, TITLE, CAPTION and draw")
    return figure


def _several(figure: ModuleType) -> bool:
    """Whether a figure compares runs."""
    return getattr(figure, "SEVERAL_RUNS", False)


def tables_in(run: Path) -> Path:
    """Where a run's tables lie; a folder of tables that gsnr.probe wrote with --out is one itself."""
    return run / "probes" if (run / "probes").is_dir() else run


def _path(run: Path, figure: ModuleType) -> Path:
    """The table that a figure draws: TABLE.parquet, or TABLE.KIND.parquet where it says a kind."""
    kind = getattr(figure, "KIND", "")
    return tables_in(run) / f"{figure.TABLE}{'.' + kind if kind else ''}.parquet"


def having(runs: list[Path], figure: ModuleType) -> list[Path]:
    """The runs of which it can be drawn: those that have its table, and [] where it is of several runs and they are one, or the other way."""
    those = [run for run in runs if _path(run, figure).is_file()]
    return those if _several(figure) == (len(runs) > 1) and _several(figure) == (len(those) > 1) else []


def table_of(runs: list[Path], figure: ModuleType) -> pd.DataFrame:
    """What the figure draws: the tables of the runs, one after another; attrs["labels"] merged, the first run's count most; attrs["beside"]: the
    rows of BESIDE. Raises ValueError naming the command that makes one that is missing."""
    for folder in runs:
        if not _path(folder, figure).is_file():
            how = BY_RECOMMEND.get(figure.TABLE, f"probe --ckpt {folder} --probe {figure.TABLE}")
            raise ValueError(f"{_path(folder, figure)}: no such table; measure it with `gsnr {how}`")
    paths = [_path(folder, figure) for folder in runs]
    tables = [_read(path, figure.TABLE) for path in paths]
    together = pd.concat(tables, ignore_index=True)
    together.attrs["labels"] = {target: label for one in reversed(tables) for target, label in one.attrs["labels"].items()}
    beside = [tables_in(folder) / f"{figure.BESIDE}.parquet" for folder in runs] if hasattr(figure, "BESIDE") else []
    together.attrs["beside"] = [row for path in beside if path.is_file() for row in _read(path, figure.BESIDE).to_dict("records")]
    return together


def _read(path: Path, probe: str) -> pd.DataFrame:
    """A table, checked once for all figures of it."""
    return _checked(path, probe, path.stat().st_ino, path.stat().st_mtime_ns)


@lru_cache
def _checked(path: Path, probe: str, inode: int, changed_ns: int) -> pd.DataFrame:
    return table.read(path, probe)


def distinct(runs: list[Path]) -> None:
    """Raises ValueError for two runs of one name."""
    (name, times), *_ = Counter(run.resolve().name for run in runs).most_common(1)
    if times > 1:
        raise ValueError(f"--run: two of the folders are called {name!r}; figures tell runs apart by that name")


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr figures", __doc__)
    parser.add_runs()
    parser.add_argument("--figure", metavar="A,B", help=f"figures to draw (default: all that the tables of the runs allow): {', '.join(names())}")
    parser.add_argument("--out", type=a_path, metavar="DIR", help="folder to write to (default: figures/ in the first run)")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    runs: list[Path] = args.run
    distinct(runs)
    every = names()
    asked = [name for name in every if having(runs, find(name))] if args.figure is None else listed("--figure", args.figure, every)
    if not asked:
        raise ValueError(f"{tables_in(runs[0])}: no tables; measure first with `gsnr probe --ckpt {runs[0]}`")
    out = args.out or runs[0] / "figures"
    files.check_writable(out, "--out")
    written, left_out = [], []
    modules = {name: find(name) for name in asked}
    rows = {}  # all of them first: a damaged one is an error, whatever else can be drawn
    for name, figure in modules.items():
        if len(runs) > 1 and not _several(figure):
            raise ValueError(f"figure {name!r} is of one run; {len(runs)} were named with --run")
        rows[name] = table_of(runs if args.figure else having(runs, figure), figure)
    with files.together() as replacing:  # all of them or none
        for name, figure in tqdm(modules.items(), desc="drawing", unit="figure", leave=False, delay=2):
            try:
                drawn = figure.draw(rows[name])
            except ValueError as error:
                if args.figure:
                    raise
                left_out.append(f"{name} is left out: {str(error).removeprefix(f'{name}: ')}")
                continue
            paths = [out / f"{name}.{suffix}" for suffix in FORMATS]
            save(drawn, paths, replacing)
            written += paths
    print("\n".join([*(f"wrote {path}" for path in written), *left_out]))
    if not written:
        raise ValueError(f"{tables_in(runs[0])}: no figure can be drawn of these tables ({left_out[0]})")
    return 0
