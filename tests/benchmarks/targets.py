"""`gsnr.compare` with one alignment loss and with eight, as `gsnr probe --probe alignment` calls it: time beside ordinary steps of the same losses.

    python -m tests.benchmarks.targets --width 384
    python -m tests.benchmarks.targets --width 768 --rounds 3

A SiT of 8 blocks, 64 tokens, tap 3, linear projectors, 64 samples in batches of 16. A step: forward and backward of the mean loss, of denoising
and of one alignment (which stops at the tap). Ways take turns; the ratio is the median over rounds, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gsnr
from gsnr.train.models.sit import SiT

TAP, TARGETS, CHANNELS = 3, 8, 64


class Aligned(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.sit = SiT(input_size=16, patch_size=2, hidden_size=width, depth=8, num_heads=width // 64, num_classes=10)
        self.heads = nn.ModuleList(nn.Linear(width, CHANNELS) for _ in range(TARGETS))
        for p in self.parameters():  # away from zero gates
            nn.init.normal_(p, std=0.02)


def outputs(model: Any, batch: dict[str, Tensor], stop: bool = False) -> Any:
    return model.sit.forward_with_taps(batch["x"], batch["t"], batch["y"], taps=(TAP,), stop=stop)


def denoising(model: nn.Module, batch: dict[str, Tensor], out: Any) -> Tensor:
    return (out[0] - batch["v"]).square().flatten(1).mean(1)


def alignment(k: int) -> Callable[..., Tensor]:
    return lambda model, batch, out: (model.heads[k](out[1][TAP]) - batch[f"f{k}"]).square().mean((1, 2))


def below(name: str) -> bool:
    return name.startswith("heads.") or not name.startswith(("sit.final_layer", *(f"sit.blocks.{i}." for i in range(TAP, 8))))


def step(model: Aligned, batches: list[dict[str, Tensor]]) -> None:
    for loss, stop in ((denoising, False), (alignment(0), True)):
        for batch in batches:
            model.zero_grad(set_to_none=True)
            loss(model, batch, outputs(model, batch, stop)).mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.targets", description=__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Aligned(args.width).to(device)
    shapes = {"x": (4, 16, 16), "v": (4, 16, 16)} | {f"f{k}": (64, CHANNELS) for k in range(TARGETS)}
    batches = [
        {name: torch.randn(16, *shape, device=device) for name, shape in shapes.items()}
        | {"t": torch.rand(16, device=device), "y": torch.randint(10, (16,), device=device)}
        for _ in range(4)
    ]
    compared = lambda losses: gsnr.compare(model, losses, denoising, batches, engine="ghost", parameters=below, common=outputs)
    ways: dict[str, Callable[[], object]] = {
        "two steps": lambda: step(model, batches),
        "compare, one loss": lambda: compared({"0": alignment(0)}),
        f"compare, {TARGETS} losses": lambda: compared({str(k): alignment(k) for k in range(TARGETS)}),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                spent[name].append(time.perf_counter() - start)
    steps, one, many = spent.values()
    for name, above, under in (
        ("one compare / its two steps", one, steps),
        (f"{TARGETS} losses in one pass / {TARGETS} compares", many, [TARGETS * x for x in one]),
    ):
        ratios = [a / b for a, b in zip(above, under, strict=True)]
        print(f"width {args.width}, n = 64: {name}: {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]")


if __name__ == "__main__":
    main()
