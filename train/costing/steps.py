"""A whole training step of the trainer, timed in turns with another's."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from gsnr.benchmarks import clock
from gsnr.train.config import TrainConfig
from gsnr.train.costing.counts import objective_of, synthetic_batch


def stepper(config: TrainConfig, samples: int) -> Callable[[], None]:
    """A whole training step, warmed up, on the machine's accelerator or CPU."""
    from accelerate import Accelerator
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    from gsnr.train.step import optimisation_step

    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.precision)
    raw = objective_of(config, "cpu")
    raw.to(accelerator.device)
    if config.compile:
        for block in raw.model.blocks:
            block.compile()
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    objective, optimizer = accelerator.prepare(raw, torch.optim.AdamW(raw.parameters(), lr=1e-6, fused=True))
    average = get_ema_multi_avg_fn(config.optim.ema)
    batch = synthetic_batch(config, samples, str(accelerator.device))

    def one() -> None:
        optimisation_step(accelerator, objective, raw, ema, optimizer, batch, config.optim.clip, config.accumulate)
        with torch.no_grad():
            average(list(ema.parameters()), list(raw.parameters()), torch.tensor(1))

    for _ in range(3 if config.compile else 1):
        one()
    return one


def matmul_peak(precision: str) -> float:
    """FLOP/s of one large square matrix product in the dtype that autocast to this precision takes; the best of ten."""
    device, side = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    a = torch.randn(side, side, device=device, dtype={"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])

    return 2 * side**3 / min(clock.seconds(lambda: a @ a) for _ in range(11))  # the first is slow


def measure(found: dict[str, dict[str, Any]], configs: dict[str, TrainConfig], samples: int, rounds: int, peak: float) -> None:
    """Adds to each row its time, in turns with the first row's: two models in memory at a time."""
    rows = list(configs)
    first = stepper(configs[rows[0]], samples)
    for row in tqdm(rows, desc="timing", unit="row", leave=False):
        step = stepper(configs[row], samples) if row != rows[0] else first
        spent = [(clock.seconds(step), clock.seconds(first)) for _ in range(rounds)]
        ratios = [mine / its for mine, its in spent] if row != rows[0] else [1.0]
        seconds = statistics.median(mine for mine, _ in spent)
        flops = 6 * samples * (found[row]["backbone_macs"] + found[row]["alignment_macs"])
        found[row] |= {"seconds": seconds, "time": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        found[row] |= {"peak": flops / seconds / peak}
