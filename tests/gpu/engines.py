"""`gsnr bench` at the published sizes: what per-sample gradients cost, as a ratio to a training step of the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from gsnr.benchmarks import bench, subjects
from tests.gpu.clock import DEVICE

TITLE = "Engines: cost as a ratio to one ordinary step over the same samples (float32; 4 batches of 16)"
LIMIT_S = 150
METHODS = {
    "sit-b": ["ghost", "ghost-interval", "ghost-two-pass", "opacus-ghost", "backpack", "vmap"],
    "sit-xl": ["ghost", "ghost-interval", "backpack"],
}


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    torch.backends.cudnn.allow_tf32 = False
    for name, methods in METHODS.items():
        make = partial(subjects.sit, 32, 2, 2, 16, 4) if toy else None
        subject = subjects.build(name, 4, torch.device(DEVICE), make)
        found = bench.measure_subject(subject, methods, rounds=1 if toy else 3, memory=DEVICE == "cuda")
        step = found["step"]
        shared = {"subject": name, "parameters, M": subject.parameters / 1e6}
        gib = None if step["bytes"] is None else step["bytes"] / 2**30
        yield shared | {"method": "step", "samples/s": found["batch"] * found["batches"] / step["seconds"], "memory": gib, "status": "memory in GiB"}
        for r in found["methods"]:
            time = r["time"] or {"median": None, "low": None, "high": None}
            yield shared | {
                "method": r["method"],
                "time": time["median"],
                "least": time["low"],
                "most": time["high"],
                "memory": r["memory"],
                "error": r["error"],
                "status": r["status"],
            }
