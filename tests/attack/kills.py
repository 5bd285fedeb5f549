"""`kill -9`, at random moments, of every command: what was there before is whole, and called again it makes what an undisturbed one makes.

Two thirds of the kills: forked processes (`tests.forked`), each on a fresh copy of what was there before. One half of them die just before a random
one of the calls that change the disk (open, rename, delete, ...), one half at a random moment after the first of these. After each, every file of
before and every new one is as it was, as the undisturbed command leaves it, or on the way there (a log with fewer lines); other files lie in
hidden places alone. Then the command is called again: all files are those of the undisturbed one, bit for bit but for the clock's fields, and
nothing is left of the kill.

A third: whole processes, killed as users kill them, many times the same training, preparation, measurement and grid: half some time after their
start (while Python loads, too), half some time after they got on (a checkpoint, a shard, a piece). In the end they are what nobody disturbed.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tests.attack import _commands
from tests.attack._commands import COMMANDS, Attacked, contents
from tests.benchmarks.prepare_speed import pictures
from tests.conftest import REPO
from tests.train.run_files import assert_same_run

ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
IMAGES = 4096
TIMES = 100
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans become this process's, which can wait for them


class Watched:
    """Counts the calls of a forked process that change the disk below a folder, and kills it before the one numbered `fatal` (0: none)."""

    def __init__(self, folder: Path, fatal: int = 0) -> None:
        self.folder, self.fatal = str(folder), fatal
        self.shared = mmap.mmap(-1, 8)

    @property
    def calls(self) -> int:
        count: int = struct.unpack("q", self.shared[:8])[0]
        return count

    def begin(self) -> None:
        """In the process itself, for as long as it lives."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if (writes or event in CHANGES) and self.folder in str(args[0]):
            calls = self.calls + 1
            self.shared[:8] = struct.pack("q", calls)
            if calls == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves, by how many calls that change the disk, and how long these take."""

    after: dict[str, Any]
    calls: int
    seconds: float

    @classmethod
    def of(cls, attacked: Attacked, before: Path, work: Path) -> Undisturbed:
        _commands.fresh(before, work)
        watched = Watched(work)
        command = _commands.start(attacked, work, watched.begin)
        begun = time.monotonic()
        while not watched.calls and time.monotonic() < begun + 2:
            time.sleep(0.001)
        first = time.monotonic()
        code = command.end()
        assert code == 0, f"gsnr {attacked.words}: exit code {code}: {_commands.error_of(command)[-500:]}"
        return cls(after=contents(work), calls=watched.calls, seconds=time.monotonic() - first)


def _killed(attacked: Attacked, work: Path, whole: Undisturbed, rng: random.Random, by_call: bool) -> str | None:
    """Where it was killed; None where it was faster."""
    watched = Watched(work, rng.randint(1, whole.calls) if by_call and whole.calls else 0)
    command = _commands.start(attacked, work, watched.begin)
    if not watched.fatal:
        begun = time.monotonic()
        while whole.calls and not watched.calls and time.monotonic() < begun + 60:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, whole.seconds))
        os.kill(command.pid, signal.SIGKILL)  # it is there until it was waited for
    code = command.end()
    assert code in (0, -signal.SIGKILL), f"exit code {code}: {_commands.error_of(command)[-500:]}"
    return None if code == 0 else f"before call {watched.fatal}" if watched.fatal else f"after call {watched.calls}"


def _underway(name: str, now: Any, before: Any, whole: Any, after: dict[str, Any]) -> bool:
    """Whether a file is as it was, as it shall be, or on the way there."""
    if now in (before, whole) or (now is not None and name.endswith(".jsonl") and whole is not None and now == whole[: len(now)]):
        return True
    return name.endswith("/LAST") and f"{Path(name).parent}/checkpoints/{now.decode().strip()}/state.json" in after


def once(attacked: Attacked, before: Path, work: Path, whole: Undisturbed, rng: random.Random, by_call: bool) -> tuple[str | None, str | None]:
    """(what is wrong after one kill; None for nothing, where it was killed; None where it ended before)."""
    _commands.fresh(before, work)
    where = _killed(attacked, work, whole, rng, by_call)
    old, after = contents(before), contents(work)
    if attacked.prints:
        after.pop("printed", None)
    for name in {**old, **after}:
        if not _commands.hidden(name) and not _underway(name, after.get(name), old.get(name), whole.after.get(name), after):
            return f"{name}: neither as before nor as undisturbed", where
    shown = {name: content for name, content in after.items() if not _commands.hidden(name)}
    if not (attacked.once and shown == whole.after):
        try:
            _commands.done(attacked, work)
        except AssertionError as error:
            return f"called again: {error}", where
    final = contents(work)
    differ = [name for name in {**whole.after, **final} if final.get(name) != whole.after.get(name)]
    return (f"called again: {differ[0]} is not that of the undisturbed" if differ else None), where


def forks(names: list[str], kills: int, rng: random.Random, folder: Path) -> list[str]:
    """So many kills, spread over these commands."""
    before, work, lost = _commands.prepared(folder, names), folder / "work", []
    for number, name in enumerate(names):
        start, places = time.monotonic(), list[str]()
        whole = Undisturbed.of(COMMANDS[name], before, work)
        wanted = kills // len(names) + (number < kills % len(names))
        for attempt in range(4 * wanted):
            if len(places) == wanted:
                break
            wrong, where = once(COMMANDS[name], before, work, whole, rng, by_call=attempt % 2 == 0)
            places += [where] if where else []
            if wrong:
                lost.append(f"{name}, killed {where}: {wrong}")
                print(lost[-1], flush=True)
        told = f"{name}: {len(places)} kills ({', '.join(places)}; of {whole.calls} calls in {whole.seconds:.1f} s)"
        print(f"{told}, {time.monotonic() - start:.0f} s", flush=True)
    return lost


def _end_of(group: int) -> None:
    """Waits for all processes of a group, orphans too."""
    try:
        while True:
            os.waitpid(-group, 0)
    except ChildProcessError:
        pass


def killed(command: list[str], progress: Callable[[], object], kills: int, rng: random.Random) -> list[object]:
    """Runs a command until it ends by itself, killing it `kills` times at most; how far it was at each kill."""
    reached: list[object] = []
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    while True:
        child = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=REPO, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if len(reached) == kills:
            if child.wait():
                raise AssertionError(f"{' '.join(command)}: exit code {child.returncode}")
            return reached
        before = progress()
        if len(reached) % 2:
            while child.poll() is None and progress() == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1))
        else:
            time.sleep(rng.uniform(0, 7))
        child.kill()
        if child.wait() == 0:
            return reached
        _end_of(child.pid)
        reached.append(progress())


def _undisturbed(command: list[str]) -> None:
    subprocess.run([sys.executable, "-m", *command], cwd=REPO, env=ENV, check=True, capture_output=True)


def training(folder: Path, kills: int, rng: random.Random) -> list[object]:
    steps = 80 * kills
    words = ["gsnr", "train", "--preset", "smoke", "--trackers", "none", "--save-every", "20", "--keep-last", "2", "--data.workers", "1"]

    def command(out: Path) -> list[str]:
        return [*words, "--steps", str(steps), "--out", str(out), "--resume"]

    def last() -> int:
        path = folder / "killed" / "LAST"
        return int(path.read_text()) if path.is_file() else 0

    reached = killed(command(folder / "killed"), last, kills, rng)
    _undisturbed(command(folder / "whole"))
    assert_same_run(folder / "whole", folder / "killed", steps)
    return reached


def preparation(folder: Path, kills: int, rng: random.Random) -> list[object]:
    pictures(folder / "pictures", 128 * kills)
    words = ["gsnr", "prepare", "--data", str(folder / "pictures"), "--vae", "demo", "--resolution", "64", "--patch", "1", "--heldout", "64"]

    def command(out: str) -> list[str]:
        return [*words, "--shard", "8", "--workers", "1", "--out", str(folder / out)]

    def finished() -> int:
        return len([note for note in (folder / ".killed-cache.preparing").glob("notes/*") if not note.name.startswith(".")])

    reached = killed(command("killed-cache"), finished, kills, rng)
    _undisturbed(command("whole-cache"))
    one, two = ({p.relative_to(folder / n): p.read_bytes() for p in (folder / n).rglob("*") if p.is_file()} for n in ("whole-cache", "killed-cache"))
    assert one == two
    return reached


def measurement(folder: Path, kills: int, rng: random.Random) -> list[object]:
    run = folder / "run"
    _undisturbed(["gsnr", "train", "--preset", "smoke", "--trackers", "none", "--steps", "10", "--out", str(run)])

    def command(out: str) -> list[str]:
        words = ["gsnr", "probe", "--ckpt", str(run), "--probe", "alignment", "--bins", str(max(4, kills)), "--n-images", "16"]
        return [*words, "--fit-samples", "128", "--fit-steps", "3", "--resume", "--out", str(folder / out)]

    def pieces() -> int:
        return len(list((folder / "killed").glob(".alignment.resume/ckpt0/*")))

    reached = killed(command("killed"), pieces, kills, rng)
    _undisturbed(command("whole"))
    for table in (folder / "whole").glob("*.parquet"):
        one, two = (pd.read_parquet(folder / name / table.name).drop(columns="created", errors="ignore") for name in ("whole", "killed"))
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    return reached


def grid(folder: Path, kills: int, rng: random.Random) -> list[object]:
    """Its trainings end with it, after they saved."""
    rows = ("sit", "ahpa")[: max(1, kills // 2)]

    def command(out: str) -> list[str]:
        words = ["gsnr", "grid", "--rows", ",".join(rows), "--steps", "60", "--save-every", "10", *_commands.SMALL.split()]
        return [*words, "--out", str(folder / out)]

    def progress() -> list[str]:
        return [path.read_text() for path in sorted((folder / "killed").glob("*/LAST"))] + [str(p) for p in folder.glob("killed/*/evaluation.json")]

    reached = killed(command("killed"), progress, kills, rng)
    _undisturbed(command("whole"))
    for row in rows:
        assert_same_run(folder / "whole" / f"{row}-s0", folder / "killed" / f"{row}-s0", 60)
    for name in ("table.csv", "table.md", *(f"{row}-s0/evaluation.json" for row in rows)):
        whole = (folder / "whole" / name).read_text().replace(str(folder / "whole"), str(folder / "killed"))
        assert whole == (folder / "killed" / name).read_text(), name
    return [json.dumps(one) for one in reached]


WHOLE = (training, preparation, measurement, grid)


def processes(kills: int, rng: random.Random, folder: Path) -> list[str]:
    """So many kills, spread over the commands that take long."""
    lost = []
    for number, work in enumerate(WHOLE):
        start, wanted = time.monotonic(), max(1, kills // len(WHOLE) + (number < kills % len(WHOLE)))
        (folder / work.__name__).mkdir()
        try:
            reached = work(folder / work.__name__, wanted, rng)
        except (AssertionError, subprocess.CalledProcessError) as error:
            lost.append(f"{work.__name__}: {' '.join(str(error).split())[:300]}")
            continue
        told = f"{work.__name__}: {len(reached)} kills, at {reached}; bit for bit the one that was not disturbed"
        print(f"{told}, {time.monotonic() - start:.0f} s", flush=True)
    return lost


def attack(n: int, seed: int, folder: Path) -> list[str]:
    rng = random.Random(seed)
    return forks(list(COMMANDS), n - n // 3, rng, folder) + processes(n // 3, rng, folder)
