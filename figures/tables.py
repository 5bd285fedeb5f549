"""`gsnr tables`: G-SNR averaged over the trajectory, per target (AHPA Tables 7, B.10, E.18), as CSV, Markdown and LaTeX.

    gsnr tables --run runs/demo                     into runs/demo/figures
    gsnr tables --run tables --probe vae_swap       Table B.10
    gsnr tables --run runs/vanilla --summary        one row a target: is it above its floor, does its control hold 0, its angle to denoising

A cell is B x G-SNR averaged over bins of t, with its 95 % interval. Bins share their images, so their errors are correlated: as the values are
that leave out each image in turn. Differences from the first target of the same run and VAE are paired by image in the same way.
Rows with the checkpoint's own projector stand apart: they must not be ranked with the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gsnr import commands, files, table
from gsnr.commandline import Parser, a_path
from gsnr.estimates import Array, student_interval
from gsnr.figures import summary
from gsnr.figures.command import distinct, tables_in
from gsnr.figures.targets import labels_of

WHICH = ["run", "checkpoint", "vae", "target", "control", "projector"]
PARTS = {"t > 0.5": (0.5, 1.0), "t < 0.5": (0.0, 0.5), "all t": (0.0, 1.0)}  # halves of the trajectory, as Table 7 has them
LEVEL = 0.95
PROBES = ("alignment", "vae_swap")


@dataclass(frozen=True)
class Bin:
    """One cell, times B. others: the same without each image in turn; se: the standard error of `gsnr.Estimate`."""

    value: float
    others: Array
    se: float


def combination(bins: list[Bin], weights: Array) -> tuple[float, float, float]:
    """Weighted sum of cells that share their images, and its interval: each cell's own standard error, correlated as the values without each image
    are. Of a single cell it is the cell's interval."""
    others = np.stack([b.others - b.others.mean() for b in bins])
    lengths = np.linalg.norm(others, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.nan_to_num(others @ others.T / np.outer(lengths, lengths))
    np.fill_diagonal(correlation, 1.0)
    errors = weights * np.array([b.se for b in bins])
    value = float(weights @ np.array([b.value for b in bins]))
    variance = max(0.0, float(errors @ correlation @ errors))
    return value, *student_interval(value, float(np.sqrt(variance)), others.shape[1], LEVEL)


def _bins(cells: pd.DataFrame, samples: pd.DataFrame, group: str) -> dict[tuple[str, ...], dict[tuple[float, float], Bin]]:
    """(run, ..., projector) -> (t_low, t_high) -> cell. Raises ValueError for a cell whose samples are not there."""
    cells, samples = cells[cells["group"] == group], samples[samples["group"] == group]
    by_cell = dict(list(samples.groupby([*WHICH, "bin"])))
    labels = labels_of(cells)
    found: dict[tuple[str, ...], dict[tuple[float, float], Bin]] = {}
    for record in cells.to_dict("records"):
        cell = {str(column): value for column, value in record.items()}
        key = tuple(cell[name] for name in WHICH)
        place = f"{table.target_name(*map(str, key[3:]), labels=labels)}, bin {cell['bin']}"
        if (*key, cell["bin"]) not in by_cell:
            raise ValueError(f"no samples of {place}")
        try:
            estimate = table.estimate_again(cell, by_cell[(*key, cell["bin"])])
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        scale = cell["batch_ref"]
        one = Bin(scale * estimate.gsnr, scale * estimate.deleted_gsnr, scale * estimate.se)
        found.setdefault(tuple(map(str, key)), {})[(cell["t_low"], cell["t_high"])] = one
    return found


def trajectory(cells: pd.DataFrame, samples: pd.DataFrame, group: str = "all") -> pd.DataFrame:
    """One row a target: for each half of the trajectory and for all of it, the average, its interval, and the paired difference from the first
    target of the same run, VAE and kind of projector, over the same bins (columns PART, PART low, PART high, PART minus first, ... low, ...
    high). A bin across t = 0.5 belongs to no half."""
    targets = _bins(cells, samples, group)
    labels = labels_of(cells)
    rows = []
    for key, bins in targets.items():
        first = next(k for k in targets if k[:3] == key[:3] and k[5] == key[5])
        row: dict[str, Any] = dict(zip(WHICH, key, strict=True)) | {"name": table.target_name(*key[3:], labels=labels)}
        for part, (low, high) in PARTS.items():
            inside = [place for place in bins if place[0] >= low - 1e-9 and place[1] <= high + 1e-9]
            if not inside:
                continue
            mean = np.full(len(inside), 1 / len(inside))
            mine = [bins[place] for place in inside]
            row |= dict(zip((part, f"{part} low", f"{part} high"), combination(mine, mean), strict=True))
            if key != first and bins.keys() == targets[first].keys():
                both = combination([*mine, *(targets[first][place] for place in inside)], np.concatenate([mean, -mean]))
                row |= dict(zip((f"{part} minus first", f"{part} minus first low", f"{part} minus first high"), both, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def measured(folder: Path, probe: str, group: str, short: bool = False) -> tuple[str, pd.DataFrame]:
    """A title, and `trajectory` of a folder's tables of a probe, or `summary` of it, with columns group, batch_ref and n. Raises ValueError naming
    the table at fault, or a group that it does not have."""
    cells, samples = (table.read(folder / f"{probe}{kind}.parquet", probe) for kind in ("", ".samples"))
    if group not in set(cells["group"]):
        raise ValueError(f"--group {group!r} is not in the table; choose from {', '.join(dict.fromkeys(cells['group']))}")
    try:
        found = trajectory(cells, samples, group)
    except ValueError as error:
        raise ValueError(f"{folder / probe}.samples.parquet: {error}") from error
    batch_ref, n = int(cells["batch_ref"].iloc[0]), int(cells["n"].iloc[0])
    title = f"{batch_ref} x G-SNR of group {group!r}, n = {n}, mean over bins of t, 95 % interval"
    if short:
        found = summary.summarised(found, cells[cells["group"] == group])
    else:
        title += "; minus first: paired by image"
    return title, found.assign(group=group, batch_ref=batch_ref, n=n)


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


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr tables", __doc__)
    parser.add_runs()
    parser.add_argument("--probe", default="alignment", metavar="NAME", help=f"which table: {', '.join(PROBES)} (default: alignment)")
    parser.add_argument("--group", default="all", metavar="NAME", help="parameter group (default: all)")
    parser.add_argument("--summary", action="store_true", help="one row a target, beside its control, in place of averages and differences")
    parser.add_argument("--out", type=a_path, metavar="DIR", help="folder to write to (default: figures/ in the first run)")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.probe not in PROBES:
        raise ValueError(f"--probe {args.probe!r} has no such table; choose from {', '.join(PROBES)}")
    if args.summary and args.probe != "alignment":
        raise ValueError(f"--summary is of probe alignment, not {args.probe}; leave one of the two out")
    distinct(args.run)
    parts = []
    for run in args.run:
        if not (path := tables_in(run) / f"{args.probe}.parquet").is_file():
            raise ValueError(f"{path}: no such table; measure it with `gsnr probe --ckpt {run} --probe {args.probe}`")
        parts.append(measured(path.parent, args.probe, args.group, args.summary))
        if parts[-1][0] != parts[0][0]:
            raise ValueError(f"--run {run}: its table is of {parts[-1][0]}; that of {args.run[0]} of {parts[0][0]}")
    title, found = parts[0][0], pd.concat([part for _, part in parts], ignore_index=True)
    shown = summary.readable(found) if args.summary else readable(found)
    out = args.out or args.run[0] / "figures"
    files.check_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    name = f"table_{args.probe}" + ("_summary" if args.summary else "") + ("" if args.group == "all" else f"_{args.group.replace(' ', '_')}")
    latex = f"% {title}\n" + shown.style.hide(axis="index").to_latex(hrules=True)
    texts = {"csv": found.to_csv(index=False), "md": f"{title}\n\n{_markdown(shown)}", "tex": latex}
    files.write_texts({out / f"{name}.{suffix}": text for suffix, text in texts.items()})
    print(texts["md"])
    print("\n".join(f"wrote {out / name}.{suffix}" for suffix in texts))
    return 0


if __name__ == "__main__":
    commands.run("tables")
