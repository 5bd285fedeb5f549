"""What a step of training costs before and after a schedule stops the alignment, as a ratio to a step of a model without alignment.

    python -m tests.benchmarks.stopped                                  demo size, rows repa and sra
    python -m tests.benchmarks.stopped --size b2 --batch 4 --rows repa

Wanted after: 1 within the spread. Turn about with the plain step, so that other work on the machine meets both; medians, least and most of the turns.
The batch is of random numbers and lies on the device, so what a run saves by reading no features is not in it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gsnr.benchmarks import clock
from gsnr.train import optimizer, presets
from gsnr.train.config import TrainConfig, resolve
from gsnr.train.costing import counts
from gsnr.train.schedules import make_schedule
from gsnr.train.step import optimisation_step

AT = 100


def stepper(config: TrainConfig, samples: int, step: int) -> Callable[[], None]:
    """That step of a run whose alignment stops after step AT, with its moving average; warmed up."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=config.precision)
    raw = counts.objective_of(config, "cpu").to(accelerator.device)
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    objective, adamw = accelerator.prepare(raw, optimizer.make(raw, config.optim))
    batch, average = counts.synthetic_batch(config, samples, str(accelerator.device)), get_ema_multi_avg_fn(config.optim.ema)
    schedules = {"align": make_schedule({"name": "stop", "at": AT})}

    def one() -> None:
        optimisation_step(accelerator, objective, raw, ema, adamw, batch, config.optim.clip, 1, (), schedules, step)
        with torch.no_grad():
            average(list(ema.parameters()), list(raw.parameters()), torch.tensor(1))

    one()
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="demo")
    parser.add_argument("--rows", default="repa,sra")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    plain = stepper(resolve(presets.at("sit", args.size)), args.batch, 1)
    for row in args.rows.split(","):
        config = resolve(presets.at(row, args.size))
        for what, step in (("before", AT), ("after", AT + 1)):
            its = stepper(config, args.batch, step)
            ratios = [clock.seconds(its) / clock.seconds(plain) for _ in range(args.turns)]
            print(f"{row:12} {what:7} {statistics.median(ratios):.3f} of sit's step [{min(ratios):.3f}, {max(ratios):.3f}]", flush=True)


if __name__ == "__main__":
    main()
