"""The training loop, on one CPU, one GPU or many: the same code and, on the CPU, the same bits after a resume.

What it writes is listed in `gsnr.train.runs.folder`; one step is `gsnr.train.step`.
"""

from __future__ import annotations

import copy
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gsnr.train import opening, optimizer, sample, vae
from gsnr.train.alignments import AlignmentModule
from gsnr.train.callback import GsnrCallback, check_images, check_independent
from gsnr.train.config import TrainConfig, alignment_config, check_size, resolve_alignment
from gsnr.train.data.batches import StepBatches, reading
from gsnr.train.data.cache import Header, Split
from gsnr.train.feedback import Feedback, check_aligned
from gsnr.train.guidance import Guidance
from gsnr.train.models.backbone import Backbone
from gsnr.train.models.build import build
from gsnr.train.models.mmdit import MMDiT
from gsnr.train.models.routing import ROUTING_OPTIONS, other_function
from gsnr.train.models.sit import DAR, STANDARD
from gsnr.train.objective import Objective, attach_teacher, check_cache, make_alignment
from gsnr.train.runs import checkpoint, training_state
from gsnr.train.runs import folder as runfolder
from gsnr.train.runs.preemption import Preemption, left_to_the_trainer
from gsnr.train.runs.progress import Progress, trackers
from gsnr.train.sampling import prompts
from gsnr.train.schedules import make_schedule
from gsnr.train.step import Window, check_finite, optimisation_step
from gsnr.train.vaes import FrozenVAE

# Before a process group goes. Its threads drop the tensors of their last work when they come to it, for which they need the interpreter's
# lock; torch's destructors hold that lock while they wait for the threads, for ever (seen with gloo, torch 2.13).
SETTLE_SEC = 0.5
ROWS = 10  # of the grids of --sample-every
SAMPLES: dict[str, Any] = {"per_class": 8, "steps": 25, "guidance": Guidance(weight=2.5), "seed": 0}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run, ready for step `first` + 1. raw: the objective, on the device; objective: the same in its distributed wrapper; ema: its
    moving average; batches: this process's; window: metrics since the last line of the log; feedback: schedules and stop rule; decoder: where this
    process draws samples, and shown, of which conditions; hold: of the run folder, in the main process."""

    accelerator: Accelerator
    config: TrainConfig
    out: Path
    first: int
    header: Header
    batches: StepBatches
    raw: Objective
    objective: nn.Module
    ema: Objective
    optimizer: Any
    window: Window
    feedback: Feedback
    callback: GsnrCallback
    decoder: FrozenVAE | None
    shown: Tensor | None
    hold: runfolder.Hold | None


def make_objective(config: TrainConfig, header: Header) -> Objective:
    """A freshly initialised objective; its weights are a function of config.seed."""
    check_cache(config.model, header)
    torch.manual_seed(config.seed)
    return Objective(build(config.model), make_alignment(config.alignment, config.model, header.groups), config.class_token_weight)


def set_null(model: Backbone, split: Split) -> None:
    """Gives a model that reads text the states of the empty caption, by the text encoder of its data."""
    if isinstance(model, MMDiT):
        model.null_text.copy_(torch.from_numpy(split.null_text()))


def start_from(path: Path, raw: Objective, config: TrainConfig) -> None:
    """Puts a checkpoint's averaged weights into a new objective; those of a plain residual stream also into one that is routed and the same function.

    Raises ValueError for one of another architecture or token grid."""
    loaded = checkpoint.load(path, "ema")
    was, model = loaded.config.model, config.model
    routed = was.residual == STANDARD and model.residual == DAR
    if routed and (reason := other_function(model)):
        raise ValueError(f"--init {path}: has a plain residual stream, of which this model would be another function: {reason}")
    if routed:
        was = replace(was, **{key: getattr(model, key) for key in ROUTING_OPTIONS})
    if was != model:
        other = next(key for key, value in asdict(was).items() if value != getattr(model, key))
        raise ValueError(
            f"--init {path}: its model's {other} is {getattr(was, other)}, this run's {getattr(model, other)}"
            + ("; `gsnr convert --resolution` makes a start on another token grid" if other == "input_size" else "")
        )
    raw.model.load_state_dict(loaded.model.state_dict(), strict=not routed)
    before, now = (resolve_alignment(options, config.model) for options in (loaded.config.alignment, config.alignment))
    if before == now:  # an option that came later is at its default
        checkpoint.assign(raw.alignment, loaded.alignment.state_dict(), loaded.folder)


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Raises ValueError where the launcher's processes know nothing of one another, or a tracker is missing."""
    last = make_schedule(config.schedule).last
    ends = (last is not None and last < config.steps) or config.stop_rule["name"] != "none"  # then projector and router are no part of backward
    ends |= alignment_config(config.alignment).scaffold > 0  # nor what gave keys and values
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, torchrun on a CPU would start runs that know nothing of one another
        mixed_precision=config.precision,
        log_with=trackers(config) or None,
        project_dir=out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)] if ends else None,
    )
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, but {accelerator.num_processes} processes joined")
    return accelerator


def train(config: TrainConfig, out: Path, resume: bool = False) -> None:
    """Trains, or continues, one run; on a signal to end it saves and returns (see `gsnr.train.runs.preemption`), or raises KeyboardInterrupt if that
    was Ctrl-C. Raises ValueError for bad input before anything is written or overwritten."""
    check_size(config.model)
    accelerator = make_accelerator(config, out)
    held: list[runfolder.Hold] = []
    interrupted = False
    try:
        run = _set_up(accelerator, config, out, resume, held)
        if run is not None:
            interrupted = _loop(run) == "SIGINT"
    except KeyboardInterrupt:
        if held and (out / "LAST").is_file():
            accelerator.print(f"\n{out}: the last checkpoint is {checkpoint.locate(out)}; continue from it with --resume")
        raise
    finally:
        for handle in held:
            handle.close()
        if accelerator.num_processes > 1:
            time.sleep(SETTLE_SEC)
    if interrupted:
        raise KeyboardInterrupt


def _set_up(accelerator: Accelerator, config: TrainConfig, out: Path, resume: bool, held: list[runfolder.Hold]) -> Run | None:
    """Everything before the first step; None where no step is left. held: where what holds the run folder is put."""
    main = accelerator.is_main_process
    if main:
        runfolder.check(out, config, resume)
    with accelerator.main_process_first():
        header, splits = opening.open_data(config)
    check_images(config, splits["heldout"])
    decoder = vae.load(header.vae) if config.sample_every and main else None
    if decoder is not None:
        decoder.require_decoder(f"--sample-every {config.sample_every}")
    raw = make_objective(config, header)
    check_independent(config, raw.alignment)
    attach_teacher(raw.alignment, header)
    check_aligned(config, raw.alignment)
    feedback = Feedback(config, accelerator)
    raw.alignment.calibrate(splits["train"])
    if config.init and not runfolder.has_checkpoint(out):
        start_from(Path(config.init), raw, config)
    set_null(raw.model, splits["train"])
    raw.model.checkpointing = config.checkpointing
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    adamw = optimizer.make(raw, config.optim)
    batches = _batches(accelerator, config, splits["train"], raw.alignment)
    if main:
        held.append(runfolder.hold(out))
    state = runfolder.restore(out, config, header, raw, ema, adamw)
    first = state.get("step", 0)
    if first >= config.steps:
        accelerator.print(f"{out}: already trained for {first} steps; nothing to do")
        return None
    feedback.restore(state.get("feedback", {}))
    if held:
        runfolder.start(held[0], out, config, state, raw)
    ema.to(accelerator.device)
    if config.compile:
        for block in raw.model.blocks:
            block.compile()
    objective, prepared = accelerator.prepare(raw, adamw)
    if state.get("scaler") and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    return Run(
        accelerator=accelerator,
        config=config,
        out=out,
        first=first,
        header=header,
        batches=batches,
        raw=raw,
        objective=objective,
        ema=ema,
        optimizer=prepared,
        window=Window(state.get("window", {}), accelerator.device),
        feedback=feedback,
        callback=GsnrCallback(config, out, raw, ema.model, splits["heldout"], accelerator, feedback.schedules),
        decoder=decoder,
        shown=None if decoder is None else _shown(config, splits["heldout"]),
        hold=held[0] if held else None,
    )


def _shown(config: TrainConfig, heldout: Split) -> Tensor:
    """The conditions that grids of --sample-every show: the first classes, or captions of held-out images."""
    return sample.conditions_of(config.model, ROWS, prompts.of_split(heldout, shuffled=True) if config.model.text else None)


def _batches(accelerator: Accelerator, config: TrainConfig, split: Split, alignment: AlignmentModule) -> StepBatches:
    """This process's share of every step's batch."""
    return StepBatches(
        split=split,
        groups=alignment.columns,
        batch=config.batch,
        seed=config.seed,
        label_dropout=config.label_dropout,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulate=config.accumulate,
        views=alignment.views,
        always=config.model.reads,
    )


def _loop(run: Run) -> str:
    """What stopped it early; "" where all steps were done."""
    accelerator, config, window, feedback = run.accelerator, run.config, run.window, run.feedback
    average = get_ema_multi_avg_fn(config.optim.ema)
    step, totals = run.first, {key: 0.0 for key in Window.STREAKS}
    batches = reading(run.batches, run.first, config.steps, config.data.workers, left_to_the_trainer, lambda: feedback.last)
    with Preemption() as preemption, closing(batches):
        if not run.first:
            feedback.after(0, {}, run.callback(0))
        progress = Progress(accelerator, config, run.out, run.first)
        for step, batch in enumerate(progress.waiting(batches), start=run.first + 1):
            lr, held = optimizer.set_rate(run.optimizer, config.optim, step), run.raw.alignment.held(step)
            parts = (accelerator, run.objective, run.raw, run.ema, run.optimizer)
            metrics = optimisation_step(*parts, batch, config.optim.clip, config.accumulate, held, feedback.schedules, step)
            window.add(metrics)
            with torch.no_grad():
                average(list(run.ema.parameters()), list(run.raw.parameters()), torch.tensor(step))
            if feedback.after(step, metrics, run.callback(step)):
                accelerator.print(f"\n{run.out}: stop rule {config.stop_rule['name']!r} releases the alignment at step {step}")
            progress.bar.update()
            if accelerator.is_main_process and step % (config.router_every or config.log_every) == 0:
                runfolder.log_router(run.out, step, run.raw)

            ends = preemption.agreed(accelerator, step)
            logs, saves = step % config.log_every == 0, ends or step % config.save_every == 0 or step == config.steps
            if logs or saves:
                totals = window.totals(accelerator)
                check_finite(step, totals, config.max_skipped)
                if run.hold is not None:
                    run.hold.watch()
                if logs:
                    window = window.emptied()
                    if accelerator.is_main_process:
                        progress.log(step, totals, lr)
                    totals = {key: value for key, value in totals.items() if key in Window.STREAKS}
                learned = feedback.state() if saves else {}
                if saves and accelerator.is_main_process:
                    _save(run, step, totals, learned)
                accelerator.wait_for_everyone()
            if run.decoder is not None and step % config.sample_every == 0:
                _save_samples(run, step, run.decoder)
            if ends:
                break
    progress.bar.close()
    by = preemption.by if step < config.steps else ""
    _end(run, step, by, streak=int(totals["streak"]))
    return by


def _save(run: Run, step: int, window: dict[str, float], feedback: dict[str, Any]) -> None:
    """A checkpoint; those that are not to be kept are deleted, but while steps are being skipped: then an earlier one may be what is wanted."""
    scaler = run.accelerator.scaler
    extra = {"window": window, "scaler": scaler.state_dict() if scaler is not None else None, "logs": runfolder.log_lengths(run.out)}
    extra["feedback"] = feedback
    training_state.save(
        run.out,
        step=step,
        objective=run.raw,
        ema=run.ema,
        optimizer=run.optimizer,
        config=run.config,
        header=run.header,
        extra=extra,
    )
    if not window["streak"]:
        runfolder.prune(run.out, run.config.keep_last, run.config.keep_every)


def _save_samples(run: Run, step: int, decoder: FrozenVAE) -> None:
    """RUN/samples/STEP.png: samples of the averaged weights, the same noise at every step."""
    assert run.shown is not None
    decoder.model.to(run.accelerator.device)
    drawn = sample.picture(run.ema.model, decoder, run.config.model, run.header.scaling, run.shown, **SAMPLES, quiet=True)
    sample.write(drawn, run.out / "samples" / f"{step:07d}.png")


def _end(run: Run, step: int, by: str, streak: int) -> None:
    """Says what was done, and takes the processes apart. by: what stopped it early, if anything did. streak: steps skipped at the end, for a
    gradient that was not finite."""
    accelerator, config = run.accelerator, run.config
    if run.callback.cost:
        accelerator.print(f"G-SNR every {config.gsnr_every} steps; {run.callback.cost}")
    if streak:
        accelerator.print(f"warning: the last {streak} steps were skipped, for their gradient was not finite; look at the data and the learning rate")
    done = f"{step} steps done" if not by else f"stopped by {by} after {step} of {config.steps} steps; continue with --resume"
    accelerator.print(f"{run.out}: {done}; last checkpoint {checkpoint.locate(run.out)}")
    if accelerator.num_processes > 1:
        time.sleep(SETTLE_SEC)
    accelerator.end_training()
