"""`gsnr verify`: is everything still as it was written?

    gsnr verify runs/demo cache/imagenet-256        every file of every checkpoint, the logs, the tables, every shard
    gsnr verify runs/demo/checkpoints/0000800

Reading a checkpoint or cache compares what is read with its checksums, a cache's shards row by row as they are used. This compares all of it,
and names each file that is missing or not as it was written. Exit code 2 if there is any.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gsnr import checksums, table
from gsnr.commandline import Parser, a_path


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr verify", __doc__)
    parser.add_argument("path", nargs="+", type=a_path, metavar="PATH", help="run, checkpoint, cache, pipeline, tables, or a folder that holds some")
    return parser


def _said(check: Callable[..., object], *words: object) -> str | None:
    """What a check raises, in words."""
    try:
        check(*words)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    return None


def folder_faults(folder: Path) -> list[str | None]:
    """One entry for each file of a folder with a manifest: None, or what is wrong with it. Of a folder that is gone, none."""
    try:
        listed = checksums.Manifest.read(folder)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda name: _said(listed.check, name), listed.files))
    except ValueError as error:
        found = [str(error)]
    return found if folder.is_dir() else []


def _below(top: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Folders with a manifest, runs and tables, `top` included. Hidden ones are being written or deleted. A run that lost its config.json is one."""
    folders, runs, tables = [], [], []
    for place, inner, names in os.walk(top):
        here = Path(place)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folders += [here] * (checksums.MANIFEST in names)
        runs += [here] * ("checkpoints" in inner or "LAST" in names)
        if not any(folder == here or folder in here.parents for folder in folders):  # else its manifest lists them
            tables += [here / name for name in names if name.endswith(".parquet") and not name.startswith(".")]
    return sorted(folders), sorted(runs), sorted(tables)


def run_faults(run: Path) -> Iterator[str | None]:
    """The same for the files of a run beside its checkpoints."""
    from gsnr import logs
    from gsnr.train.runs import checkpoint, folder
    from gsnr.train.runs import state as states

    stored = run / "config.json"
    yield _said(checksums.read_sealed, stored)
    logged: dict[str, int] = {}
    for kept in checkpoint.kept(run):
        said = _said(lambda kept=kept: logged.update(states.read(kept).get("logs", {})))  # the newest comes last
        if not kept.is_dir():  # deleted by a training
            continue
        yield said
        if not (kept / checksums.MANIFEST).exists():
            checksums.say_unchecked(kept)
    yield _said(checkpoint.locate, run)
    for name in folder.LOGS:
        yield logs.fault(run / name, logged.get(name, 0))


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    faults: list[str] = []
    files = 0
    for path in args.path:
        if not path.is_dir():
            raise ValueError(f"{path}: {'a file; name the folder that it is in' if path.is_file() else 'no such folder'}")
    for path in args.path:
        folders, runs, tables = _below(path)
        if not folders and not runs and not tables:
            raise ValueError(f"{path}: holds no tables, and no run, checkpoint or cache with checksums (a {checksums.MANIFEST})")
        found = [said for folder in folders for said in folder_faults(folder)] + [said for run in runs for said in run_faults(run)]
        found += [_said(table.read, one) for one in tables]
        files += len(found)
        faults += [said for said in found if said]
    for said in faults:
        print(said)
    if faults:
        raise ValueError(f"{len(faults)} of {files} files are not as they were written")
    print(f"{files} files are as they were written")
    return 0
