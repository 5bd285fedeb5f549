"""Trainings, preparations, samplings, measurements and grids, killed as users kill them: whole processes, many times the same, half of them some
time after their start (while Python loads, too), half some time after they got on (a checkpoint, a shard, a piece). In the end they are what nobody
disturbed: all tensors of the last checkpoint and all logs but the clock's fields, bit for bit; of a cache, every file; of tables, every number.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tests.attack import _commands
from tests.benchmarks.prepare_speed import pictures
from tests.conftest import REPO
from tests.train.run_files import assert_same_run

ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans become this process's, which can wait for them


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


def sampling(folder: Path, kills: int, rng: random.Random) -> list[object]:
    run = folder / "run"
    _undisturbed(["gsnr", "train", "--preset", "smoke", "--trackers", "none", "--steps", "4", "--out", str(run)])

    def command(out: str) -> list[str]:
        words = ["gsnr", "sample", "--ckpt", str(run), "--n", str(64 * kills), "--shard", "8", "--sampler", "sde", "--sampling-steps", "20"]
        return [*words, "--out", str(folder / out)]

    def finished() -> int:
        return len(list((folder / ".killed.npz.sampling").glob("[0-9]*")))

    reached = killed(command("killed.npz"), finished, kills, rng)
    _undisturbed(command("whole.npz"))
    assert (folder / "whole.npz").read_bytes() == (folder / "killed.npz").read_bytes()
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


WHOLE = (training, preparation, sampling, measurement, grid)


def processes(kills: int, rng: random.Random, folder: Path) -> list[str]:
    """So many kills, spread over the commands that take long."""
    lost = []
    for number, work in enumerate(WHOLE):
        start, wanted = time.monotonic(), max(1, kills // len(WHOLE) + (number < kills % len(WHOLE)))
        (folder / work.__name__).mkdir()
        try:
            reached = work(folder / work.__name__, wanted, rng)
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            lost.append(f"{work.__name__}: {' '.join(str(error).split())[:300]}")
            continue
        told = f"{work.__name__}: {len(reached)} kills, at {reached}; bit for bit the one that was not disturbed"
        print(f"{told}, {time.monotonic() - start:.0f} s", flush=True)
    return lost
