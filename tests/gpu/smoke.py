"""The commands of the README, one after another, on the preset `smoke`: does each of them come to its end on this device?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from gsnr.commands import COMMANDS

TITLE = "Every command, at the size of the preset smoke"
LIMIT_S = 120


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="gsnr-gpu-") as folder:
        run = str(Path(folder) / "smoke")
        words = {
            "train": ["--preset", "smoke", "--out", run, "--gsnr-every", "15", "--gsnr-images", "16"],
            "evaluate": ["--ckpt", run],
            "sample": ["--ckpt", run, "--per-class", "1", "--sampling-steps", "5"],
            "probe": ["--ckpt", run, "--n-images", "16", "--bins", "2", "--fit-samples", "256", "--fit-steps", "100"],
            "figures": ["--run", run],
        }
        for name, options in words.items():
            start = time.perf_counter()
            code = import_module(COMMANDS[name].module).main(options)
            yield {"command": f"gsnr {name}", "seconds": time.perf_counter() - start, "exit code": code}
