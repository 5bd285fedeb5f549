"""`gsnr verify`: is everything still as it was written?

    gsnr verify runs/demo cache/imagenet-256        every file of every checkpoint, the logs, every shard
    gsnr verify runs/demo/checkpoints/0000800

Reading a checkpoint or cache compares what is read with its checksums, a cache's shards row by row as they are used. This compares all of it,
and names each file that is missing or not as it was written. Exit code 2 if there is any. Tables are checked by whatever reads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gsnr import checksums
from gsnr.commandline import Parser, a_path


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr verify", __doc__)
    parser.add_argument("path", nargs="+", type=a_path, metavar="PATH", help="run, checkpoint, cache, or a folder that holds some")
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


def _below(top: Path) -> tuple[list[Path], list[Path]]:
    """Folders with a manifest and runs, `top` included. Hidden ones are being written or deleted."""
    folders, runs = [], []
    for place, inner, names in os.walk(top):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        folders += [Path(place)] * (checksums.MANIFEST in names)
        runs += [Path(place)] * ("checkpoints" in inner and "config.json" in names)
    return sorted(folders), sorted(runs)


def run_faults(run: Path) -> Iterator[str | None]:
    """The same for the files of a run beside its checkpoints."""
    from gsnr.train.runs import checkpoint, folder, logs
    from gsnr.train.runs import state as states

    stored = run / "config.json"
    yield _said(checksums.read_sealed, stored)
    logged: dict[str, int] = {}
    for kept in checkpoint.kept(run):
        said = _said(lambda kept=kept: logged.update(states.read(kept).get("logs", {})))  # the newest comes last
        if not kept.is_dir():  # deleted by a training
            continue
        yield said
        if not (kept / checksums.MANIFEST).is_file():
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
            raise ValueError(f"{path}: no such folder")
        folders, runs = _below(path)
        if not folders and not runs:
            raise ValueError(f"{path}: holds no run, checkpoint or cache with checksums (a {checksums.MANIFEST})")
        found = [said for folder in folders for said in folder_faults(folder)] + [said for run in runs for said in run_faults(run)]
        files += len(found)
        faults += [said for said in found if said]
    for said in faults:
        print(said)
    if faults:
        raise ValueError(f"{len(faults)} of {files} files are not as they were written")
    print(f"{files} files are as they were written")
    return 0
