"""`kill -9` at random moments: a training and a preparation that are killed many times are, in the end, those that nobody disturbed.

    python -m tests.benchmarks.kills                 30 kills of each; about ten minutes on two cores

The commands are killed as users' are: whole processes, half of them some time after their start (while Python loads, too), half some time
after they got on (a checkpoint, a shard). Compared are all tensors of the last checkpoint and all logs but the clock's fields, bit for bit;
of a cache, every file.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.prepare_speed import pictures
from tests.conftest import REPO
from tests.train.run_files import assert_same_run

ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
IMAGES = 4096


def killed(command: list[str], progress: Callable[[], object], kills: int, rng: random.Random) -> list[object]:
    """Runs a command until it ends by itself, killing it `kills` times at most; how far it was at each kill."""
    reached: list[object] = []
    while True:
        child = subprocess.Popen([sys.executable, "-m", *command], cwd=REPO, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if len(reached) == kills:
            if child.wait():
                raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}")
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
            raise SystemExit(f"{' '.join(command)}: ended before it was killed {kills} times; give it more to do")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    for name, work in (("training", training), ("preparation", preparation)):
        with tempfile.TemporaryDirectory() as folder:
            reached = work(Path(folder), options.kills, rng)
        print(f"{name}: {len(reached)} kills, at {reached}; bit for bit the one that was not disturbed", flush=True)


if __name__ == "__main__":
    main()
