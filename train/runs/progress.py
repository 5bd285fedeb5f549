"""The progress of a run, in its main process: the bar, metrics.jsonl and the trackers."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from gsnr import logs
from gsnr.train.config import TrainConfig
from gsnr.train.data.batches import Batch


def trackers(config: TrainConfig) -> list[str]:
    """Raises ValueError for one that is not installed."""
    names = [name for name in config.trackers.split(",") if name != "none"]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--trackers {name}: the package is not installed (pip install {name}); or use --trackers none")
    return names


class Progress:
    """It also takes the time that went into waiting for data."""

    def __init__(self, accelerator: Accelerator, config: TrainConfig, out: Path, first: int) -> None:
        self.accelerator, self.out = accelerator, out
        self.started = self.since = time.perf_counter()
        self.waited = 0.0
        self.extra = () if config.model.extra_token is None else ("class_token",)
        main = accelerator.is_main_process
        self.bar = tqdm(initial=first, total=config.steps, desc=out.name, unit="it", disable=not main, mininterval=1.0, smoothing=0.05)
        if config.trackers != "none":
            flat = {"config": str(asdict(config))}
            accelerator.init_trackers("tensorboard", config=flat, init_kwargs={"tensorboard": {"purge_step": first + 1}, "wandb": {"name": out.name}})

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each is there is noted."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def log(self, step: int, totals: dict[str, float], lr: float) -> None:
        """One line; means are over the steps that were not skipped."""
        steps, now = totals["steps"], time.perf_counter()
        names = ("loss", "velocity", "align", *self.extra, "grad_norm")
        means = {name: totals[name] / steps if steps else None for name in names}
        elapsed = now - self.since  # 0 where the clock is too coarse: then nothing is said of speed
        clock = {"it_per_s": (steps + totals["skipped"], 3), "wait_share": (self.waited, 4)}
        speed = {name: round(part / elapsed, digits) if elapsed > 0 else None for name, (part, digits) in clock.items()}
        line = {"step": step, **means, "skipped": int(totals["skipped"]), "lr": lr, **speed, "wall_s": round(now - self.started, 3)}
        logs.append(self.out / "metrics.jsonl", line)
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in means.items() if value is not None and name != "grad_norm"})
        self.accelerator.log({key: value for key, value in line.items() if key != "step" and value is not None}, step=step)
        self.since, self.waited = now, 0.0
