"""What the card reaches in large products and copies: what all other numbers are read against."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

import torch

from tests.gpu.clock import DEVICE, median_s

TITLE = "The machine"
LIMIT_S = 60


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    gpu = DEVICE == "cuda"
    yield {"what": "device", "value": torch.cuda.get_device_name() if gpu else platform.processor() or "CPU"}
    yield {"what": "PyTorch, CUDA, Python", "value": f"{torch.__version__}, {torch.version.cuda}, {platform.python_version()}"}
    yield {"what": "memory, GiB", "value": torch.cuda.get_device_properties(0).total_memory / 2**30 if gpu else None}
    yield {"what": "CPU cores", "value": os.cpu_count()}
    side = 256 if toy else 8192
    for name, dtype, tf32 in (("float32", torch.float32, False), ("TF32", torch.float32, True), ("bfloat16", torch.bfloat16, False)):
        a = torch.randn(side, side, device=DEVICE, dtype=dtype)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        yield {"what": f"matrix product in {name}, TFLOP/s", "value": 2 * side**3 / median_s(lambda a=a: a @ a) / 1e12}
        torch.backends.cuda.matmul.allow_tf32 = False
    a = torch.randn(side // 2, side // 2, device=DEVICE, dtype=torch.float64)
    yield {"what": "matrix product in float64, TFLOP/s", "value": 2 * (side // 2) ** 3 / median_s(lambda: a @ a) / 1e12}
    x = torch.randn(side * side * 4, device=DEVICE)
    y = torch.empty_like(x)
    yield {"what": "copy, read and written, TB/s", "value": 2 * x.nbytes / median_s(lambda: y.copy_(x)) / 1e12}
    host = torch.randn(side * side, pin_memory=gpu)
    yield {"what": "pinned memory to the device, GB/s", "value": host.nbytes / median_s(lambda: x[: len(host)].copy_(host, non_blocking=True)) / 1e9}
