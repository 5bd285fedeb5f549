"""How fast `gsnr sample --n` samples, beside the loop that people write by hand: Heun's method around the same model, batch and steps.

    python -m tests.benchmarks.sampling                          a SiT of the demo's size, batch 16
    python -m tests.benchmarks.sampling --ckpt RUN --batch 64 --steps 50 --cfg 1.5

The plain loop draws its noise with torch.randn, keeps its state in the model's dtype, and guides with two passes, as ours does; ours draws noise by
sample, keeps its state in float64 and looks after precision and random state. The decoder, which is the same in both, is left out. Wanted: a ratio
of at least 1. Runs turn about, so that other work on the machine meets both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsnr.train.guidance import Guidance
from gsnr.train.models.sit import SiT
from gsnr.train.runs.checkpoint import load_model
from gsnr.train.sampling import recipe


@torch.no_grad()
def plain(model: Any, shape: tuple[int, int, int], y_B: Tensor, steps: int, cfg: float) -> Tensor:
    """The loop by hand."""

    def velocity(x: Tensor, t: float) -> Tensor:
        t_B = torch.full((len(x),), t, device=x.device)
        v = model(x, t_B, y_B)
        if cfg == 1:
            return v
        null = model(x, t_B, torch.full_like(y_B, model.config.num_classes))
        return null + cfg * (v - null)

    x = torch.randn(len(y_B), *shape, device=y_B.device)
    for t, s in pairwise(np.linspace(1.0, 0.0, steps + 1).tolist()):
        slope = velocity(x, t)
        moved = x + (s - t) * slope
        x = moved if s == 0 else x + (s - t) * 0.5 * (slope + velocity(moved, s))
    return x


def seconds(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="run or checkpoint folder (default: random weights of the demo's size)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = {"input_size": 8, "patch_size": 1, "hidden_size": 128, "depth": 8, "num_heads": 4, "num_classes": 10}
    model: Any = (load_model(options.ckpt) if options.ckpt else SiT(**small)).to(device).eval()
    shape = (model.config.in_channels, model.config.input_size, model.config.input_size)
    subject: Any = SimpleNamespace(loaded=SimpleNamespace(model=model), shape=shape, classes=model.config.num_classes, prompts=None)
    by = recipe.Recipe(
        sampler="heun", steps=options.steps, guidance=Guidance(weight=options.cfg), classes="balanced", uint8="repa", seed=0, precision="no"
    )
    numbers = np.arange(options.batch, dtype=np.int64)
    y_B = torch.from_numpy(by.labels(numbers, subject.classes)).to(device)
    loops = {
        "plain loop": lambda: plain(model, shape, y_B, options.steps, options.cfg),
        "gsnr sample": lambda: recipe.latents(subject, by, numbers, device),
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(options.turns + 1):
        for name, loop in loops.items():
            rate = options.batch / seconds(loop, device)
            if turn:  # the first of each warms up
                rates[name].append(rate)
    for name, found in rates.items():
        print(f"{name:12} {statistics.median(found):9.2f} images/s (median of {len(found)}; {min(found):.2f} to {max(found):.2f})")
    ratios = [ours / theirs for ours, theirs in zip(rates["gsnr sample"], rates["plain loop"], strict=True)]
    print(f"ratio        {statistics.median(ratios):9.3f} (by turns: {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
