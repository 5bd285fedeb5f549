"""The commands of the README, one after another, on the preset `smoke`: does each of them come to its end on this device?

Samples must be those that a process without the device draws, but for rounding: a GPU's memory has laid them out otherwise before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gsnr.commands import COMMANDS

TITLE = "Every command, at the size of the preset smoke"
LIMIT_S = 120
SAMPLED = ("--n", "20", "--sampling-steps", "5")
LEVELS = 3.0  # of 255, in the mean over all pixels: rounding; images that are garbled differ by tens


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="gsnr-gpu-") as folder:
        run = str(Path(folder) / "smoke")
        samples = str(Path(folder) / "samples.npz")
        commands = [
            "train --preset smoke --out RUN --gsnr-every 15 --gsnr-images 16",
            "evaluate --ckpt RUN",
            "sample --ckpt RUN --per-class 1 --sampling-steps 5",
            f"sample --ckpt RUN {' '.join(SAMPLED)} --out SAMPLES",
            "probe --ckpt RUN --n-images 16 --bins 2 --fit-samples 256 --fit-steps 100",
            "verdict --run RUN",
            "figures --run RUN",
            "recommend --ckpt RUN --rows repa@1,shuffled:repa@1 --n-images 16 --train-images 32 --lookahead 2",
            "fork --ckpt RUN --rows repa@1 --steps 4 --n-images 16 --out FORKS",
        ]
        places = {"RUN": run, "SAMPLES": samples, "FORKS": str(Path(folder) / "forks")}
        for command in commands:
            name, *words = [places.get(word, word) for word in command.split()]
            start = time.perf_counter()
            code = import_module(COMMANDS[name].module).main(words)
            yield {"command": f"gsnr {command}", "seconds": time.perf_counter() - start, "exit code": code}
        start, again = time.perf_counter(), str(Path(folder) / "again.npz")
        words = [sys.executable, "-m", "gsnr", "sample", "--ckpt", run, *SAMPLED, "--out", again]
        code = subprocess.run(words, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True).returncode
        off = float(abs(np.load(samples)["arr_0"].astype(int) - np.load(again)["arr_0"]).mean())
        assert off < LEVELS, f"samples differ from the CPU's by {off:.1f} of 255 levels in the mean"
        yield {"command": "the same samples on the CPU", "seconds": time.perf_counter() - start, "exit code": code, "mean difference, of 255": off}
