"""The training loop, on one CPU, one GPU or many: the same code and, on the CPU, the same bits after a resume.

RUN/config.json      the resolved configuration and versions
RUN/metrics.jsonl    means over the steps since the line before; `it_per_s` and `wall_s` are the only wall-clock fields
RUN/router.jsonl     the router's weights on a grid of t (what Fig. 5 reads)
RUN/gsnr.jsonl       with --gsnr-every: see `train.watch`
RUN/checkpoints/     see `train.checkpoint`
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

import gsnr
from gsnr import files
from train import checkpoint, runlog, vae, watch
from train.config import TrainConfig, alignment_config
from train.data import encode, foreign
from train.data.batches import Batch, StepBatches, loader
from train.data.cache import Header, Split, header_from, open_cache
from train.models.sit import SiT
from train.objective import Objective, check_cache, make_alignment

ROUTER_GRID = 51  # points of t in [0, 1] at which router weights are logged
MAY_CHANGE = ("steps", "gsnr_every", "gsnr_images")  # on --resume: what does not touch the training itself
Metrics = dict[str, torch.Tensor]


def make_objective(config: TrainConfig, header: Header) -> Objective:
    """A freshly initialised objective; its weights are a function of config.seed."""
    check_cache(config.model, header)
    torch.manual_seed(config.seed)
    model = SiT(**asdict(config.model))
    return Objective(model, make_alignment(config.alignment, config.model, header.groups))


def open_data(config: TrainConfig) -> tuple[Header, dict[str, Split]]:
    """The cache of a configuration; the demo's is built on first use. Raises ValueError where there is none or it does not fit."""
    needs = alignment_config(config.alignment).needs
    if not config.data.path:
        raise ValueError("--data.path is missing: name a cache folder made by `python -m train.prepare`, or `demo`")
    folder = Path(config.data.path)
    if config.data.path == "demo":
        folder = encode.demo_cache(config.data.demo_train, config.data.demo_heldout, config.data.resampling)
    elif (opened := foreign.open_folder(config.data, needs, config.model.num_classes)) is not None:
        return opened
    header, splits = open_cache(folder, needs)
    if config.data.vae and vae.load(config.data.vae).sha != header.vae_sha:
        raise ValueError(f"{folder}: was made with VAE {header.vae!r} ({header.vae_sha[:12]}), not with --data.vae {config.data.vae}")
    if needs and header.resampling != config.data.resampling:
        raise ValueError(f"{folder}: features were resampled {header.resampling!r}; data.resampling asks for {config.data.resampling!r}")
    return header, splits


def _log_router(out: Path, step: int, objective: Objective) -> None:
    t_K = torch.linspace(0, 1, ROUTER_GRID, device=next(objective.parameters()).device)
    with torch.no_grad():
        weights = objective.alignment.router_weights(t_K)
    if weights:
        lists = {name: [[round(x, 6) for x in row] for row in w.tolist()] for name, w in weights.items()}
        runlog.append(out / "router.jsonl", {"step": step, "t": [round(t, 6) for t in t_K.tolist()]} | lists)


class Window:
    """Sums of a step's metrics since the last line of metrics.jsonl; kept on the device, so that adding to them never waits for it."""

    KEYS = ("loss", "velocity", "align", "grad_norm", "steps")

    def __init__(self, sums: dict[str, float], device: torch.device) -> None:
        self.sums = {key: torch.tensor(sums.get(key, 0.0), device=device) for key in self.KEYS}

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        for key, value in metrics.items():
            self.sums[key] += value.detach()
        self.sums["steps"] += 1

    def totals(self, accelerator: Accelerator) -> dict[str, float]:
        """The sums, averaged over the processes; every process has to call it."""
        stacked = accelerator.reduce(torch.stack(list(self.sums.values())), "mean")
        return dict(zip(self.sums, stacked.tolist(), strict=True))


def _check_finite(step: int, sums: dict[str, float]) -> None:
    """Raises ValueError where the loss stopped being finite, before that is logged or saved. (fp16 may skip a step: its norm is infinite.)"""
    if not math.isfinite(sums["loss"]):
        raise ValueError(f"the loss is not finite at or before step {step}: {sums}; the last checkpoint is from before; lower --optim.lr")


def _log_metrics(out: Path, step: int, sums: dict[str, float], lr: float, since: float, started: float) -> dict[str, float]:
    """Writes one line of metrics.jsonl and returns it."""
    steps = sums["steps"]
    means = {name: value / steps for name, value in sums.items() if name != "steps"}
    now = time.time()
    line = {"step": step, **means, "lr": lr, "it_per_s": round(steps / (now - since), 3), "wall_s": round(now - started, 3)}
    runlog.append(out / "metrics.jsonl", line)
    return line


def _check_out(out: Path, config: TrainConfig, resume: bool) -> None:
    """Raises ValueError for a run folder that must not be written to: something else, a run without --resume, or one that differs."""
    stored = out / "config.json"
    if not stored.is_file():
        if out.exists() and (not out.is_dir() or any(p.name != "lost+found" for p in out.iterdir())):
            raise ValueError(f"--out {out}: exists and is not a run; name a new folder")
        files.check_writable(out, "--out")
        return
    if not resume:
        raise ValueError(f"--out {out}: already holds a run; continue it with --resume, or name a new folder")
    try:
        before = _flat(json.loads(stored.read_text())["config"])
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{stored}: damaged ({error})") from error
    for key, value in _flat(json.loads(json.dumps(asdict(config)))).items():
        was = before.get(key)
        if key == "steps" and value < was:
            raise ValueError(f"--resume: --steps can only grow; this run was asked for {was}, now {value}")
        if key not in MAY_CHANGE and value != was:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in MAY_CHANGE)
            raise ValueError(f"--resume: {key} was {was!r} in {stored}, now {value!r}; only {flags} may change")


def _start_logs(out: Path, config: TrainConfig, step: int, objective: Objective) -> None:
    """Creates the run folder, or cuts its logs back to the step that training continues from."""
    out.mkdir(parents=True, exist_ok=True)
    resolved = {"config": asdict(config), "versions": {"gsnr": gsnr.__version__, "torch": torch.__version__}}
    files.write_text(out / "config.json", json.dumps(resolved, indent=2) + "\n")
    (out / "checkpoints").mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "router.jsonl", watch.LOG):
        runlog.cut_back(out / name, step if step else -1)
    if not step:
        _log_router(out, 0, objective)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _restore(out: Path, header: Header, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """state.json of the last checkpoint, its weights put back; {} for a new run. Raises ValueError where the data's VAE is another one."""
    if not (out / "LAST").is_file():
        return {}
    stored = asdict(header_from(checkpoint.read_state(checkpoint.locate(out))["cache"]))
    for key, value in asdict(header).items():
        if stored[key] != value:
            raise ValueError(f"--resume: {out} was trained on data whose {key} was {stored[key]!r}; the cache now says {value!r}")
    return checkpoint.restore(out, objective, ema, optimizer)


def ready(accelerator: Accelerator, batch: Batch, raw: Objective, ema: Objective) -> Batch:
    """A batch on the device, with what the alignment reads of the moving average."""
    moved = {key: x.to(accelerator.device, non_blocking=True) for key, x in batch.items()}
    with torch.no_grad(), accelerator.autocast():
        return raw.alignment.prepare(moved, ema.model)


def optimisation_step(
    accelerator: Accelerator, objective: nn.Module, raw: Objective, optimizer: AcceleratedOptimizer, batch: Batch, clip: float
) -> Metrics:
    """One optimisation step; its metrics, still on the device. `raw` is the objective without its distributed wrapper."""
    losses = {name: value.mean() for name, value in objective(batch).items()}
    loss = losses["velocity"] + raw.alignment.weight * losses.get("align", 0.0)
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(raw.parameters(), clip)
    optimizer.step()
    return {"loss": loss, **losses, "grad_norm": norm}


def train(config: TrainConfig, out: Path, resume: bool = False) -> None:
    """Trains, or continues, one run. Raises ValueError for bad input before anything is written or overwritten."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, torchrun on a CPU would start runs that know nothing of one another
        mixed_precision=config.precision,
    )
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, but {accelerator.num_processes} processes joined")
    if accelerator.is_main_process:
        _check_out(out, config, resume)
    with accelerator.main_process_first():
        header, splits = open_data(config)
    watch.check(config, splits["heldout"])
    raw = make_objective(config, header)
    raw.alignment.calibrate(splits["train"])
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    optim = config.optim
    betas = (optim.beta1, optim.beta2)
    adamw = torch.optim.AdamW(raw.parameters(), lr=optim.lr, betas=betas, weight_decay=optim.weight_decay, fused=True)
    batches = StepBatches(
        split=splits["train"],
        groups=raw.alignment.needs,
        batch=config.batch,
        seed=config.seed,
        label_dropout=config.label_dropout,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    state = _restore(out, header, raw, ema, adamw)
    first = state.get("step", 0)
    if first >= config.steps:
        accelerator.print(f"{out}: already trained for {first} steps; nothing to do")
        return
    if accelerator.is_main_process:
        _start_logs(out, config, first, raw)

    device = accelerator.device
    ema.to(device)
    objective, optimizer = accelerator.prepare(raw, adamw)
    if state.get("scaler") and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    average = get_ema_multi_avg_fn(optim.ema)
    watching = watch.Watch(config, out, raw, ema.model, splits["heldout"], device, accelerator.process_index, accelerator.num_processes)
    if not first:
        watching(0)
    window = Window(state.get("window", {}), device)
    started = since = time.time()
    bar = tqdm(initial=first, total=config.steps, desc=out.name, unit="it", disable=not accelerator.is_main_process, mininterval=1.0, smoothing=0.05)
    for step, batch in enumerate(loader(batches, first, config.steps, config.data.workers), start=first + 1):
        lr = optim.lr * min(1.0, step / optim.warmup) if optim.warmup else optim.lr
        for group in optimizer.param_groups:
            group["lr"] = lr
        window.add(optimisation_step(accelerator, objective, raw, optimizer, ready(accelerator, batch, raw, ema), optim.clip))
        with torch.no_grad():
            average(list(ema.parameters()), list(raw.parameters()), torch.tensor(step))
        watching(step)
        bar.update()

        logs, saves = step % config.log_every == 0, step % config.save_every == 0 or step == config.steps
        if not (logs or saves):
            continue
        sums = window.totals(accelerator)
        _check_finite(step, sums)
        if logs:
            window = Window({}, device)
            if accelerator.is_main_process:
                line = _log_metrics(out, step, sums, lr, since, started)
                bar.set_postfix({name: f"{line[name]:.3f}" for name in ("loss", "velocity", "align")})
                _log_router(out, step, raw)
            sums, since = {}, time.time()
        if saves and accelerator.is_main_process:
            extra = {"window": sums, "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None}
            checkpoint.save(out, step=step, objective=raw, ema=ema, optimizer=optimizer, config=config, header=header, extra=extra)
        accelerator.wait_for_everyone()
    bar.close()
    if watching.cost:
        accelerator.print(f"G-SNR every {config.gsnr_every} steps: {watching.cost}")
    accelerator.print(f"{out}: {config.steps} steps done; last checkpoint {checkpoint.locate(out)}")
    accelerator.end_training()
