"""`kill -9` at random moments: a training, a preparation and a measurement that are killed many times are, in the end, those that nobody disturbed.

A third of the kills each. The commands are killed as users' are: whole processes, half of them some time after their start (while Python loads,
too), half some time after they got on (a checkpoint, a shard, a piece). Compared are all tensors of the last checkpoint and all logs but the
clock's fields, bit for bit; of a cache, every file; of tables, every number.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tests.benchmarks.prepare_speed import pictures
from tests.conftest import REPO
from tests.train.run_files import assert_same_run

ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
IMAGES = 4096
TIMES = 90


def killed(command: list[str], progress: Callable[[], object], kills: int, rng: random.Random) -> list[object]:
    """Runs a command until it ends by itself, killing it `kills` times at most; how far it was at each kill."""
    reached: list[object] = []
    while True:
        child = subprocess.Popen([sys.executable, "-m", *command], cwd=REPO, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
        reached.append(progress())


def training(folder: Path, kills: int, rng: random.Random) -> list[object]:
    steps = 80 * kills
    words = ["train", "--preset", "smoke", "--trackers", "none", "--save-every", "20", "--keep-last", "2", "--data.workers", "1"]

    def command(out: Path) -> list[str]:
        return [*words, "--steps", str(steps), "--out", str(out), "--resume"]

    def last() -> int:
        path = folder / "killed" / "LAST"
        return int(path.read_text()) if path.is_file() else 0

    reached = killed(command(folder / "killed"), last, kills, rng)
    subprocess.run([sys.executable, "-m", *command(folder / "whole")], cwd=REPO, env=ENV, check=True, capture_output=True)
    assert_same_run(folder / "whole", folder / "killed", steps)
    return reached


def preparation(folder: Path, kills: int, rng: random.Random) -> list[object]:
    pictures(folder / "pictures", IMAGES)
    words = ["train.prepare", "--data", str(folder / "pictures"), "--vae", "demo", "--resolution", "64", "--patch", "1", "--heldout", "64"]

    def command(out: str) -> list[str]:
        return [*words, "--shard", "8", "--workers", "1", "--out", str(folder / out)]

    def finished() -> int:
        return len([note for note in (folder / ".killed-cache.preparing").glob("notes/*") if not note.name.startswith(".")])

    reached = killed(command("killed-cache"), finished, kills, rng)
    subprocess.run([sys.executable, "-m", *command("whole-cache")], cwd=REPO, env=ENV, check=True, capture_output=True)
    one, two = ({p.relative_to(folder / n): p.read_bytes() for p in (folder / n).rglob("*") if p.is_file()} for n in ("whole-cache", "killed-cache"))
    assert one == two
    return reached


def measurement(folder: Path, kills: int, rng: random.Random) -> list[object]:
    run = folder / "run"
    words = ["gsnr", "train", "--preset", "smoke", "--trackers", "none", "--steps", "10", "--out", str(run)]
    subprocess.run([sys.executable, "-m", *words], cwd=REPO, env=ENV, check=True, capture_output=True)

    def command(out: str) -> list[str]:
        words = ["gsnr", "probe", "--ckpt", str(run), "--probe", "alignment", "--bins", str(max(4, kills)), "--n-images", "16"]
        return [*words, "--fit-samples", "128", "--fit-steps", "3", "--resume", "--out", str(folder / out)]

    def pieces() -> int:
        return len(list((folder / "killed").glob(".alignment.resume/ckpt0/*")))

    reached = killed(command("killed"), pieces, kills, rng)
    subprocess.run([sys.executable, "-m", *command("whole")], cwd=REPO, env=ENV, check=True, capture_output=True)
    for table in (folder / "whole").glob("*.parquet"):
        one, two = (pd.read_parquet(folder / name / table.name).drop(columns="created", errors="ignore") for name in ("whole", "killed"))
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    return reached


def attack(n: int, seed: int, folder: Path) -> list[str]:
    rng, lost = random.Random(seed), []
    for work in (training, preparation, measurement):
        (folder / work.__name__).mkdir()
        try:
            reached = work(folder / work.__name__, max(1, n // 3), rng)
        except AssertionError as error:
            lost.append(f"{work.__name__}: {' '.join(str(error).split())[:300]}")
            continue
        print(f"{work.__name__}: {len(reached)} kills, at {reached}; bit for bit the one that was not disturbed", flush=True)
    return lost
