"""Every command that writes, on a disk that is full after so many bytes: one line that names the path, and what was there before.

The disk is full for a file that grows beyond a limit (RLIMIT_FSIZE: "File too large", where a full disk says "No space left on device"; both are
errors of the same calls). Sizes are drawn from 1 byte to the largest file that the command writes. An attack gets through where something else
than a message is raised, the message is several lines or names no path, a file of before is changed or gone, or a half-written one is left.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from accelerate.state import AcceleratorState

from gsnr import commandline, files
from gsnr.figures import command as figures
from gsnr.figures import report, tables
from gsnr.probes.common import command as probe
from gsnr.train import command as train
from gsnr.train import sample
from gsnr.train.prepare import command as prepare
from gsnr.train.runs import checkpoint
from tests.benchmarks.prepare_speed import pictures

TIMES = 50  # of each command
RUN = ("--preset", "smoke", "--trackers", "none", "--save-every", "2", "--log-every", "1")
PROBE = ("--probe", "alignment", "--bins", "2", "--n-images", "8", "--fit-samples", "128", "--fit-steps", "3", "--controls", "none")
PICTURES = ("--vae", "demo", "--resolution", "64", "--patch", "1", "--heldout", "8", "--shard", "8", "--workers", "0")

LEFT = re.compile(r"(^|/)\.[^/]+\.(\d+|gone)/")  # a checkpoint or cache that was being written, by process, or deleted


@dataclass(frozen=True)
class Attacked:
    """main and words: the command; WORK in a word is its folder. writes: what of that folder it may add to or go on with, beside new files."""

    main: Callable[[list[str]], int]
    words: tuple[str, ...]
    grows: tuple[str, ...] = ()


COMMANDS = {
    "train": Attacked(train.main, (*RUN, "--steps", "4", "--out", "WORK/new"), ("new",)),
    "resume": Attacked(train.main, (*RUN, "--steps", "6", "--out", "WORK/run", "--resume"), ("run",)),
    "probe": Attacked(probe.main, ("--ckpt", "WORK/run", *PROBE, "--overwrite", "--resume"), (".alignment.resume",)),
    "figures": Attacked(figures.main, ("--run", "WORK/run", "--figure", "fig2_gsnr,fig_blocks")),
    "tables": Attacked(tables.main, ("--run", "WORK/run")),
    "report": Attacked(report.main, ("--run", "WORK/run")),
    "sample": Attacked(sample.main, ("--ckpt", "WORK/run", "--classes", "1", "--per-class", "1", "--sampling-steps", "1")),
    "prepare": Attacked(prepare.main, ("--data", "WORK/pictures", *PICTURES, "--out", "WORK/cache"), (".cache.preparing",)),
}


def called(main: Callable[[list[str]], int], words: list[str]) -> Exception | None:
    """What a command raises that its user sees as one line, or as a traceback."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            main(words)
    except Exception as error:
        return error
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return None


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Files grow to that many bytes and no further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"}


def prepared(folder: Path) -> Path:
    """A run with tables, figures and a page, and pictures: what the commands find."""
    work = folder / "before"
    pictures(work / "pictures", 24)
    for main, words in (
        (train.main, (*RUN, "--steps", "4", "--out", "WORK/run")),
        *((COMMANDS[name].main, COMMANDS[name].words) for name in ("probe", "figures", "tables", "report", "sample")),
    ):
        if (error := called(main, _words(words, work))) is not None:
            raise error
    return work


def _words(words: tuple[str, ...], work: Path) -> list[str]:
    return [word.replace("WORK", str(work)) for word in words]


def _grown(name: str, content: bytes, after: dict[str, bytes]) -> bool:
    """Whether a file of a run was changed as going on changes it: logs by more lines, LAST to a checkpoint that is there, other options."""
    if name.endswith(".jsonl"):
        return after.get(name, b"").startswith(content)
    if name.endswith("/LAST"):
        now = after.get(name, b"").decode().strip()
        return now > content.decode().strip() and f"{Path(name).parent}/checkpoints/{now}/state.json" in after
    return name.endswith("/config.json") and "/checkpoints/" not in name and bool(json.loads(after.get(name, b"{}")))


def _wrong(attacked: Attacked, work: Path, before: dict[str, bytes], error: Exception | None) -> str | None:
    """What got through; None for nothing."""
    if error is not None and not isinstance(error, ValueError | OSError):
        return f"traceback: {type(error).__name__}: {error}"
    if error is not None and str(work) not in commandline._text(error):
        return f"names no path: {error}"
    if error is not None and len(str(error).splitlines()) > 1:
        return f"several lines: {error}"
    after = _contents(work)
    if left := [name for name in after if files.ASIDE in name or LEFT.search(name)]:
        return f"left {left[0]}"
    changed = [name for name, content in before.items() if after.get(name) != content]
    if error is None or not changed:
        return None
    if attacked.grows and all(name.startswith(attacked.grows) for name in changed):
        changed = [name for name in changed if not _grown(name, before[name], after)]
        checkpoint.load(work / "run")
    return f"changed {changed[0]}" if changed else None


def once(name: str, before: Path, work: Path, size: int) -> tuple[str | None, bool]:
    """What got through of one attack (None for nothing), and whether the disk was full for it."""
    attacked = COMMANDS[name]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(before, work)
    contents = _contents(work)
    with full_after(size):
        error = called(attacked.main, _words(attacked.words, work))
    return _wrong(attacked, work, contents, error), error is not None


def attack(n: int, seed: int, folder: Path) -> list[str]:
    """n sizes of each command."""
    rng, through = random.Random(seed), []
    before, work = prepared(folder), folder / "work"
    for name in COMMANDS:
        assert once(name, before, work, resource.RLIM_INFINITY) == (None, False), name
        old = {path.stat().st_mtime_ns for path in before.rglob("*")}  # the copy keeps them
        largest = max(path.stat().st_size for path in work.rglob("*") if path.is_file() and path.stat().st_mtime_ns not in old)
        stopped = 0
        for _ in range(n):
            size = int(largest ** rng.uniform(0, 1))
            wrong, full = once(name, before, work, size)
            stopped += full
            through += [f"{name}, {size} bytes: {wrong}"] if wrong else []
        print(f"{name}: full {stopped} of {n} times", flush=True)
    return through
