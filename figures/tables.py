"""`python -m figures.tables`: G-SNR averaged over the trajectory, per target (AHPA Tables 7, B.10, E.18), as CSV, Markdown and LaTeX.

    python -m figures.tables --run runs/demo                     into runs/demo/figures
    python -m figures.tables --run tables --probe vae_swap       Table B.10

A cell is B x G-SNR averaged over bins of t, with its 95 % interval: delete-one jackknife over images, each of which is left out of all bins
at once, for the bins share their images. Differences from the first target of the same run and VAE are paired by image in the same way.
Rows with the checkpoint's own projector stand apart: they must not be ranked with the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsnr import files, table
from gsnr.commandline import Parser, run
from gsnr.estimates import Array, jackknife_interval

WHICH = ["run", "checkpoint", "vae", "target", "control", "projector"]
PARTS = {"t > 0.5": (0.5, 1.0), "t < 0.5": (0.0, 0.5), "all t": (0.0, 1.0)}  # halves of the trajectory, as Table 7 has them
LEVEL = 0.95
PROBES = ("alignment", "vae_swap")


def _averages(cells: pd.DataFrame, samples: pd.DataFrame, group: str) -> dict[tuple[str, ...], dict[str, tuple[float, Array]]]:
    """(run, ..., projector) -> part of the trajectory -> (average of B x gsnr over its bins, the same without each image in turn)."""
    cells, samples = cells[cells["group"] == group], samples[samples["group"] == group]
    by_cell = dict(list(samples.groupby([*WHICH, "bin"])))
    found: dict[tuple[str, ...], dict[str, tuple[float, Array]]] = {}
    for key, rows in cells.groupby(WHICH, sort=False):
        bins = {}
        for record in rows.to_dict("records"):
            cell = {str(column): value for column, value in record.items()}
            estimate = table.estimate_again(cell, by_cell[(*key, cell["bin"])])
            scale = cell["batch_ref"]
            bins[(cell["t_low"], cell["t_high"])] = (scale * estimate.gsnr, scale * estimate.deleted_gsnr)
        averages = {}
        for name, (low, high) in PARTS.items():
            inside = [value for (a, b), value in bins.items() if a >= low - 1e-9 and b <= high + 1e-9]
            if inside:
                averages[name] = (float(np.mean([value for value, _ in inside])), np.mean([deleted for _, deleted in inside], axis=0))
        found[tuple(map(str, key))] = averages
    return found


def trajectory(cells: pd.DataFrame, samples: pd.DataFrame, group: str = "all") -> pd.DataFrame:
    """One row a target: for each half of the trajectory and for all of it, the average, its interval, and the paired difference from the first
    target with a fitted projector of the same run and VAE (columns PART, PART low, PART high, PART minus first, ... low, ... high)."""
    averages = _averages(cells, samples, group)
    rows = []
    for key, parts in averages.items():
        same = [k for k in averages if k[:3] == key[:3] and k[5] == key[5]]
        row: dict[str, Any] = dict(zip(WHICH, key, strict=True)) | {"name": table.target_name(*key[3:])}
        for name, (value, deleted) in parts.items():
            first, first_deleted = averages[same[0]][name]
            low, high = jackknife_interval(value, deleted, LEVEL)
            row |= {name: value, f"{name} low": low, f"{name} high": high}
            if key != same[0]:
                low, high = jackknife_interval(value - first, deleted - first_deleted, LEVEL)
                row |= {f"{name} minus first": value - first, f"{name} minus first low": low, f"{name} minus first high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """The same with one text a cell: value [low, high]; runs and VAEs only where there are several."""
    shown = pd.DataFrame(index=found.index)
    for column in ("run", "vae"):
        if found[column].nunique() > 1:
            shown[column] = found[column]
    shown["target"] = found["name"]
    for part in PARTS:
        for name, heading in ((part, part), (f"{part} minus first", f"{part}, minus first")):
            if name in found:
                texts = zip(found[name], found[f"{name} low"], found[f"{name} high"], strict=True)
                shown[heading] = ["" if np.isnan(v) else f"{v:.1f} [{a:.1f}, {b:.1f}]" for v, a, b in texts]
    return shown


def _markdown(shown: pd.DataFrame) -> str:
    lines = [f"| {' | '.join(shown.columns)} |", f"|{'---|' * len(shown.columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in shown.astype(str).to_numpy())]) + "\n"


def main(argv: list[str]) -> int:
    assert __doc__ is not None
    parser = Parser("python -m figures.tables", __doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder, or a folder of tables that gsnr.probe wrote")
    parser.add_argument("--probe", default="alignment", metavar="NAME", help=f"which table: {', '.join(PROBES)} (default: alignment)")
    parser.add_argument("--group", default="all", metavar="NAME", help="parameter group (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: figures/ in the run)")
    args = parser.parse_args(argv)
    if args.probe not in PROBES:
        raise ValueError(f"--probe {args.probe!r} has no such table; choose from {', '.join(PROBES)}")
    folder = args.run / "probes" if (args.run / "probes").is_dir() else args.run
    if not (folder / f"{args.probe}.parquet").is_file():
        raise ValueError(
            f"{folder / args.probe}.parquet: no such table; measure it with `python -m gsnr.probe --ckpt {args.run} --probe {args.probe}`"
        )
    cells, samples = (table.read(folder / f"{args.probe}{kind}.parquet") for kind in ("", ".samples"))
    if args.group not in set(cells["group"]):
        raise ValueError(f"--group {args.group!r} is not in the table; choose from {', '.join(dict.fromkeys(cells['group']))}")
    found = trajectory(cells, samples, args.group)
    shown = readable(found)
    out = args.out or args.run / "figures"
    files.check_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    name = f"table_{args.probe}"
    files.write_text(out / f"{name}.csv", found.to_csv(index=False))
    files.write_text(out / f"{name}.md", _markdown(shown))
    files.write_text(out / f"{name}.tex", shown.style.hide(axis="index").to_latex(hrules=True))
    print(f"{int(cells['batch_ref'].iloc[0])} x G-SNR of group {args.group!r}, mean over bins of t, 95 % interval; minus first: paired by image\n")
    print(_markdown(shown))
    print("\n".join(f"wrote {out / name}.{suffix}" for suffix in ("csv", "md", "tex")))
    return 0


if __name__ == "__main__":
    run(main)
