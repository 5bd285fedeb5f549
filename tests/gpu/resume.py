"""Is a run that was stopped and resumed the run that was not, bit for bit? With deterministic kernels, and without."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from gsnr.train import command
from gsnr.train.runs import checkpoint

TITLE = "Resume: 15 + 15 steps against 30"
LIMIT_S = 90
SMALL = ["--preset", "smoke", "--trackers", "none", "--save-every", "15"]


def _digest(run: Path) -> str:
    """Of every file of tensors of the last checkpoint."""
    files = sorted(checkpoint.locate(run).glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _same(folder: Path, options: list[str]) -> tuple[bool, bool]:
    """(whether two whole runs are the same, whether a resumed one is)."""
    whole, again, halves = (folder / name for name in ("whole", "again", "halves"))
    for out in (whole, again):
        command.main([*SMALL, *options, "--steps", "30", "--out", str(out)])
    command.main([*SMALL, *options, "--steps", "15", "--out", str(halves)])
    command.main([*SMALL, *options, "--steps", "30", "--out", str(halves), "--resume"])
    return _digest(whole) == _digest(again), _digest(whole) == _digest(halves)


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)
        for precision in ("no",) if toy else ("no", "bf16"):
            AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the precision of the process's first run
            with tempfile.TemporaryDirectory(prefix="gsnr-gpu-") as folder:
                twice, resumed = _same(Path(folder), ["--precision", precision])
            yield {"deterministic kernels": deterministic, "precision": precision, "two runs the same": twice, "resumed the same": resumed}
