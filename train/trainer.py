"""The training loop, on one CPU, one GPU or many: the same code and, on the CPU, the same bits after a resume.

What it writes is listed in `train.runfolder`; one step is `train.step`.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from gsnr.train import callback, opening, sample, vae
from gsnr.train.config import ModelConfig, TrainConfig
from gsnr.train.data.batches import Batch, StepBatches, loader
from gsnr.train.data.cache import Header, Split
from gsnr.train.data.latents import Scaling
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective, check_cache, make_alignment
from gsnr.train.runs import checkpoint
from gsnr.train.runs import folder as runfolder
from gsnr.train.runs import logs as runlog
from gsnr.train.runs.preemption import Preemption
from gsnr.train.step import Window, check_finite, optimisation_step

# Before a process group goes. Its threads drop the tensors of their last work when they come to it, for which they need the interpreter's
# lock; torch's destructors hold that lock while they wait for the threads, for ever (seen with gloo, torch 2.13).
SETTLE_SEC = 0.5
SAMPLES: dict[str, Any] = {"classes": 10, "per_class": 8, "steps": 25, "guidance": 2.5, "seed": 0}  # of the grids of --sample-every


def make_objective(config: TrainConfig, header: Header) -> Objective:
    """A freshly initialised objective; its weights are a function of config.seed."""
    check_cache(config.model, header)
    torch.manual_seed(config.seed)
    model = SiT(**asdict(config.model))
    return Objective(model, make_alignment(config.alignment, config.model, header.groups))


def _trackers(config: TrainConfig) -> list[str]:
    """Raises ValueError for one that is not installed."""
    names = [name for name in config.trackers.split(",") if name != "none"]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--trackers {name}: the package is not installed (pip install {name}); or use --trackers none")
    return names


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Raises ValueError where the launcher's processes know nothing of one another, or a tracker is missing."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, torchrun on a CPU would start runs that know nothing of one another
        mixed_precision=config.precision,
        log_with=_trackers(config) or None,
        project_dir=out,
    )
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, but {accelerator.num_processes} processes joined")
    return accelerator


class _Progress:
    """The bar, metrics.jsonl, the trackers, and the time that went into waiting for data."""

    def __init__(self, accelerator: Accelerator, config: TrainConfig, out: Path, first: int) -> None:
        self.accelerator, self.out = accelerator, out
        self.started = self.since = time.time()
        self.waited = 0.0
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
        steps, now = totals["steps"], time.time()
        means = {name: totals[name] / steps if steps else None for name in ("loss", "velocity", "align", "grad_norm")}
        clock = {"it_per_s": round((steps + totals["skipped"]) / (now - self.since), 3), "wait_share": round(self.waited / (now - self.since), 4)}
        line = {"step": step, **means, "skipped": int(totals["skipped"]), "lr": lr, **clock, "wall_s": round(now - self.started, 3)}
        runlog.append(self.out / "metrics.jsonl", line)
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in means.items() if value is not None and name != "grad_norm"})
        self.accelerator.log({key: value for key, value in line.items() if key != "step" and value is not None}, step=step)
        self.since, self.waited = time.time(), 0.0


def train(config: TrainConfig, out: Path, resume: bool = False) -> None:
    """Trains, or continues, one run; on SIGTERM it saves and returns. Raises ValueError for bad input before anything is written or overwritten."""
    accelerator = make_accelerator(config, out)
    held: list[TextIO] = []
    try:
        _train(accelerator, config, out, resume, held)
    except KeyboardInterrupt:
        if held and (out / "LAST").is_file():
            accelerator.print(f"\n{out}: the last checkpoint is {checkpoint.locate(out)}; continue from it with --resume")
        raise
    finally:
        for handle in held:
            handle.close()
        if accelerator.num_processes > 1:
            time.sleep(SETTLE_SEC)


def _train(accelerator: Accelerator, config: TrainConfig, out: Path, resume: bool, held: list[TextIO]) -> None:
    """held: where the handle that locks the run folder is put."""
    device, main = accelerator.device, accelerator.is_main_process
    if main:
        runfolder.check(out, config, resume)
    with accelerator.main_process_first():
        header, splits = opening.open_data(config)
    callback.check(config, splits["heldout"])
    decoder = vae.load(header.vae) if config.sample_every and main else None
    raw = make_objective(config, header)
    raw.alignment.calibrate(splits["train"])
    raw.model.checkpointing = config.checkpointing
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    optim = config.optim
    adamw = torch.optim.AdamW(raw.parameters(), lr=optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=optim.weight_decay, fused=True)
    batches = _batches(accelerator, config, splits["train"], raw.alignment.needs)
    state = runfolder.restore(out, header, raw, ema, adamw)
    first = state.get("step", 0)
    if first >= config.steps:
        accelerator.print(f"{out}: already trained for {first} steps; nothing to do")
        return
    if main:
        held.append(runfolder.start(out, config, first, raw))
    ema.to(device)
    if config.compile:
        for block in raw.model.blocks:
            block.compile()
    objective, optimizer = accelerator.prepare(raw, adamw)
    if state.get("scaler") and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    average = get_ema_multi_avg_fn(optim.ema)
    watching = callback.GsnrCallback(config, out, raw, ema.model, splits["heldout"], device, accelerator.process_index, accelerator.num_processes)
    if not first:
        watching(0)
    window = Window(state.get("window", {}), device)
    progress = _Progress(accelerator, config, out, first)
    step = first
    totals: dict[str, float] = {}

    def save(totals: dict[str, float]) -> None:
        extra = {"window": totals, "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None}
        checkpoint.save(out, step=step, objective=raw, ema=ema, optimizer=optimizer, config=config, header=header, extra=extra)
        runfolder.prune(out, config.keep_last, config.keep_every)

    with Preemption() as stop:
        for step, batch in enumerate(progress.waiting(iter(loader(batches, first, config.steps, config.data.workers))), start=first + 1):
            lr = optim.lr * min(1.0, step / optim.warmup) if optim.warmup else optim.lr
            for group in optimizer.param_groups:
                group["lr"] = lr
            window.add(optimisation_step(accelerator, objective, raw, ema, optimizer, batch, optim.clip, config.accumulate))
            with torch.no_grad():
                average(list(ema.parameters()), list(raw.parameters()), torch.tensor(step))
            watching(step)
            progress.bar.update()

            ends = stop.agreed(accelerator, step)
            logs, saves = step % config.log_every == 0, ends or step % config.save_every == 0 or step == config.steps
            if logs or saves:
                totals = window.totals(accelerator)
                check_finite(step, totals, config.max_skipped)
                if logs:
                    window = window.emptied()
                    if main:
                        progress.log(step, totals, lr)
                        runfolder.log_router(out, step, raw)
                    totals = {key: value for key, value in totals.items() if key in Window.STREAKS}
                if saves and main:
                    save(totals)
                accelerator.wait_for_everyone()
            if decoder is not None and step % config.sample_every == 0:
                _save_samples(out, step, ema, decoder, config.model, header.scaling)
            if ends:
                break
    progress.bar.close()
    if watching.cost:
        accelerator.print(f"G-SNR every {config.gsnr_every} steps: {watching.cost}")
    accelerator.print(_farewell(out, step, config.steps, int(totals["streak"])))
    if accelerator.num_processes > 1:
        time.sleep(SETTLE_SEC)
    accelerator.end_training()


def _batches(accelerator: Accelerator, config: TrainConfig, split: Split, groups: tuple[str, ...]) -> StepBatches:
    """This process's share of every step's batch."""
    return StepBatches(
        split=split,
        groups=groups,
        batch=config.batch,
        seed=config.seed,
        label_dropout=config.label_dropout,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulate=config.accumulate,
    )


def _farewell(out: Path, step: int, steps: int, streak: int) -> str:
    """streak: steps skipped at the end, for a gradient that was not finite."""
    done = f"{step} steps done" if step == steps else f"stopped by SIGTERM after {step} of {steps} steps; continue with --resume"
    warning = f"warning: the last {streak} steps were skipped, for their gradient was not finite; look at the data and the learning rate\n"
    return f"{warning if streak else ''}{out}: {done}; last checkpoint {checkpoint.locate(out)}"


def _save_samples(out: Path, step: int, ema: Objective, decoder: vae.FrozenVAE, shape: ModelConfig, scaling: Scaling) -> None:
    """RUN/samples/STEP.png: samples of the averaged weights, the same noise at every step."""
    device = next(ema.parameters()).device
    decoder.model.to(device)
    drawn = sample.picture(ema.model, decoder, shape, scaling, **SAMPLES, quiet=True)
    sample.write(drawn, out / "samples" / f"{step:07d}.png")
