"""Whole training steps of the trainer on a batch that stays on the device: it/s, the share of the matrix product's peak, peak memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch

from gsnr.train import presets
from gsnr.train.config import resolve
from gsnr.train.costing import counts, steps
from tests.gpu.clock import DEVICE, forget_peak, median_s, peak_gib

TITLE = "Training steps (bfloat16 autocast; share: 6 MACs a sample over the time, of one large product in bfloat16)"
LIMIT_S = 170
ROWS = ("sit", "ahpa", "repa", "sra")


def one(size: str, name: str, batch: int, compile: bool, peak: float, precision: str) -> dict[str, Any]:
    """One row, or why there is none."""
    config = resolve(presets.at(name, size), {"precision": precision, "compile": compile})
    said = {"size": size, "row": name, "batch": batch, "compiled": compile}
    forget_peak()
    try:
        seconds = median_s(steps.stepper(config, batch), turns=6)
    except torch.OutOfMemoryError:
        return said | {"note": "out of memory"}
    counted = counts.macs(config)
    share = 6 * batch * (counted.backbone + counted.alignment) / seconds / peak
    return said | {"it/s": 1 / seconds, "images/s": batch / seconds, "share": share, "peak, GiB": peak_gib()}


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    precision = "no" if toy else "bf16"
    peak = steps.matmul_peak(precision)
    sizes = {"demo": 8} if toy else {"b2": 128, "xl2": 64}
    base: dict[tuple[str, bool], float] = {}
    for compile in (False,) if toy else (False, True):
        for size, batch in sizes.items():
            for name in ROWS[: 2 if toy or compile else None]:
                row = one(size, name, batch, compile, peak, precision)
                if "it/s" in row:
                    base.setdefault((size, compile), row["it/s"])
                    row["time of sit"] = base[size, compile] / row["it/s"]
                yield row
                gc.collect()
                torch.compiler.reset()
                if DEVICE == "cuda":
                    torch.cuda.empty_cache()
