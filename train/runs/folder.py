"""The run folder around a training: may it be written to, what it starts with, and what a run continues from.

RUN/config.json      the resolved configuration and versions
RUN/metrics.jsonl    means over the steps since the line before; `it_per_s`, `wait_share` and `wall_s` are the only wall-clock fields
RUN/router.jsonl     the router's weights on a grid of t (what Fig. 5 reads)
RUN/gsnr.jsonl       with --gsnr-every: see `gsnr.train.callback`
RUN/samples/         with --sample-every: grids of samples of the averaged weights
RUN/tensorboard/     unless --trackers none
RUN/checkpoints/     see `gsnr.train.runs.checkpoint`
RUN/lock             locked by the process that trains
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

import gsnr
from gsnr import files
from gsnr.train import callback
from gsnr.train.config import TrainConfig, resolve
from gsnr.train.data.cache import Header, header_from
from gsnr.train.objective import Objective
from gsnr.train.runs import checkpoint
from gsnr.train.runs import logs as runlog

ROUTER_GRID = 51  # points of t in [0, 1] at which router weights are logged
# On --resume: what does not change the run that is asked for. (compile, checkpointing and accumulate change how its numbers are rounded.)
MAY_CHANGE = (
    *("steps", "gsnr_every", "gsnr_images", "sample_every", "trackers", "keep_last", "keep_every", "save_every", "max_skipped"),
    *("compile", "checkpointing", "accumulate", "log_every", "router_every"),
    *("data.workers", "data.path"),  # of data elsewhere, the header is compared
)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _as_json(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return values


def _of_today(values: dict[str, Any], stored: Path) -> dict[str, Any]:
    """A stored configuration with the defaults of options that came later, which leave a run as it was."""
    try:
        return _as_json(resolve(values))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{stored}: damaged, or of another version ({error})") from error


def check(out: Path, config: TrainConfig, resume: bool) -> None:
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
        values = json.loads(stored.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{stored}: damaged ({error})") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{stored}: damaged (its `config` is not a mapping)")
    before = _flat(_of_today(values, stored))
    for key, value in _flat(_as_json(config)).items():
        was = before.get(key)
        if key == "steps" and isinstance(was, int) and value < was:
            raise ValueError(f"--resume: --steps can only grow; this run was asked for {was}, now {value}")
        if key not in MAY_CHANGE and value != was:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in MAY_CHANGE)
            raise ValueError(f"--resume: {key} was {was!r} in {stored}, now {value!r}; only {flags} may change")


def start(out: Path, config: TrainConfig, step: int, objective: Objective) -> TextIO:
    """Creates the run folder, or cuts its logs back to the step that training continues from. What it returns holds the folder's lock.

    Raises ValueError where another process is training there.
    """
    out.mkdir(parents=True, exist_ok=True)
    held = files.lock(out / "lock")
    resolved = {"config": asdict(config), "versions": {"gsnr": gsnr.__version__, "torch": torch.__version__}}
    files.write_text(out / "config.json", json.dumps(resolved, indent=2) + "\n")
    (out / "checkpoints").mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "router.jsonl", callback.LOG):
        runlog.cut_back(out / name, step if step else -1)
    if not step:
        log_router(out, 0, objective)
    return held


def log_router(out: Path, step: int, objective: Objective) -> None:
    """One line of router.jsonl, where anything is learned."""
    t_K = torch.linspace(0, 1, ROUTER_GRID, device=next(objective.parameters()).device)
    with torch.no_grad():
        weights = objective.alignment.router_weights(t_K)
    if weights:
        lists = {name: [[round(x, 6) for x in row] for row in w.tolist()] for name, w in weights.items()}
        runlog.append(out / "router.jsonl", {"step": step, "t": [round(t, 6) for t in t_K.tolist()]} | lists)


def restore(out: Path, header: Header, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """state.json of the last checkpoint, its weights put back; {} for a new run. Raises ValueError where the data's VAE is another one.

    Without LAST (a kill in the midst of the first save, or somebody's slip) the newest checkpoint is the last one: they appear whole.
    """
    if not (out / "LAST").is_file():
        whole = sorted(p.name for p in (out / "checkpoints").glob("*") if p.name.isdigit() and (p / "state.json").is_file())
        if not whole:
            return {}
        files.write_text(out / "LAST", whole[-1] + "\n")
    folder = checkpoint.locate(out)
    try:
        stored = asdict(header_from(checkpoint.read_state(folder)["cache"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / 'state.json'}: damaged (its `cache`: {error})") from error
    for key, value in asdict(header).items():
        same_rows = key == "data" and header.options_sha and header.options_sha == stored["options_sha"]  # the folder is called otherwise
        if stored[key] != value and not same_rows:
            raise ValueError(f"--resume: {out} was trained on data whose {key} was {stored[key]!r}; the cache now says {value!r}")
    return checkpoint.restore(out, objective, ema, optimizer)


def prune(out: Path, keep_last: int, keep_every: int) -> None:
    """Deletes checkpoints but the last `keep_last` (0: all stay) and those of steps that are multiples of `keep_every` (0: none).

    The one that LAST names always stays.
    """
    if not keep_last:
        return
    last = (out / "LAST").read_text().strip()
    steps = sorted(p for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    for folder in steps[:-keep_last]:
        if folder.name != last and not (keep_every and int(folder.name) % keep_every == 0):
            shutil.rmtree(folder)
