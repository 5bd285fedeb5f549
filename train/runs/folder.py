"""The run folder around a training: may it be written to, what it starts with, and what a run continues from.

RUN/config.json      the resolved configuration and versions
RUN/metrics.jsonl    means over the steps since the line before; `it_per_s`, `wait_share` and `wall_s` are the only wall-clock fields
RUN/router.jsonl     the router's weights on a grid of t (what Fig. 5 reads)
RUN/gsnr.jsonl       with --gsnr-every: see `gsnr.train.callback`
RUN/balance.jsonl    the same, of an aligned run
RUN/samples/         with --sample-every: grids of samples of the averaged weights
RUN/tensorboard/     unless --trackers none
RUN/checkpoints/     see `gsnr.train.runs.checkpoint`
RUN/lock             locked by the process that trains, which stands in it

What a resumption takes out of a log (lines that are damaged, or of steps that are done again) is kept in LOG.cut.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import gsnr
from gsnr import checksums, files, locks
from gsnr import logs as runlog
from gsnr.train import callback
from gsnr.train.config import TrainConfig, resolve
from gsnr.train.data.cache import Header
from gsnr.train.objective import Objective
from gsnr.train.runs import checkpoint, place, training_state
from gsnr.train.runs import state as states

LOGS = ("metrics.jsonl", "router.jsonl", callback.LOG, callback.BALANCE)
ROUTER_GRID = 51  # points of t in [0, 1] at which router weights are logged
# On --resume: what does not change the run that is asked for. (compile, checkpointing and accumulate change how its numbers are rounded.)
MAY_CHANGE = (
    *("steps", "gsnr_every", "gsnr_images", "gsnr_bins", "sample_every", "trackers", "keep_last", "keep_every", "save_every", "max_skipped"),
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
    if not place.holds_run(out, resume):
        return
    stored = out / place.STORED
    values = checksums.read_sealed(stored).get("config")
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{stored}: damaged (its `config` is not a mapping)")
    steps = values.get("steps")
    if isinstance(steps, int) and config.steps < steps:
        raise ValueError(f"--resume: --steps can only grow; this run was asked for {steps}, now {config.steps}")
    _compare(values, stored, config)


def _compare(values: dict[str, Any], stored: Path, config: TrainConfig) -> None:
    """Raises ValueError for an option of another value in a stored configuration, but those that may change."""
    before = _flat(_of_today(values, stored))
    for key, value in _flat(_as_json(config)).items():
        if key not in MAY_CHANGE and value != before.get(key):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in MAY_CHANGE)
            raise ValueError(f"--resume: {key} was {before.get(key)!r} in {stored}, now {value!r}; only {flags} may change")


class Hold:
    """A run folder, held by the process that trains there: by RUN/lock and, since anybody may delete that, by RUN/config.json too."""

    def __init__(self, out: Path) -> None:
        """Raises ValueError, naming the holder, where another process has the folder."""
        self.lock, self.stored = locks.Lock(out / "lock"), out / place.STORED
        try:
            self.config = locks.take(self.stored) if self.stored.is_file() else None
        except ValueError:
            self.lock.close()
            raise

    def record(self, resolved: dict[str, Any]) -> None:
        """Writes config.json, and holds the new one."""
        before = self.config
        files.write_text(self.stored, json.dumps(checksums.seal(resolved), indent=2) + "\n")
        self.config = locks.take(self.stored)
        if before is not None:
            before.close()

    def watch(self) -> None:
        """Raises ValueError where another process has got hold of the folder; puts a lock that was deleted back."""
        self.lock.watch()

    def close(self) -> None:
        if self.config is not None:
            self.config.close()
        self.lock.close()


def hold(out: Path) -> Hold:
    """Before anything is read that another process may still write. Raises ValueError where one is training there."""
    out.mkdir(parents=True, exist_ok=True)
    return Hold(out)


def start(held: Hold, out: Path, config: TrainConfig, state: dict[str, Any], objective: Objective) -> None:
    """Fills the run folder, or cuts its logs back to the step that training continues from. state: of the checkpoint; {} for a new run."""
    held.record({"config": asdict(config), "versions": {"gsnr": gsnr.__version__, "torch": torch.__version__}})
    (out / "checkpoints").mkdir(exist_ok=True)
    step, logged = state.get("step", 0), state.get("logs", {})
    for name in LOGS:
        runlog.cut_back(out / name, step if step else -1, logged.get(name))
    if not step:
        log_router(out, 0, objective)


def log_lengths(out: Path) -> dict[str, int]:
    """log -> its lines, for state.json."""
    return {name: runlog.length(out / name) for name in LOGS}


def log_router(out: Path, step: int, objective: Objective) -> None:
    """One line of router.jsonl, where anything is learned."""
    t_K = torch.linspace(0, 1, ROUTER_GRID, device=next(objective.parameters()).device)
    with torch.no_grad():
        weights = objective.alignment.router_weights(t_K)
    if weights:
        lists = {name: [[round(x, 6) for x in row] for row in w.tolist()] for name, w in weights.items()}
        runlog.append(out / "router.jsonl", {"step": step, "t": [round(t, 6) for t in t_K.tolist()]} | lists)


def has_checkpoint(out: Path) -> bool:
    """Whether `restore` goes on from one."""
    return (out / "LAST").is_file() or next(checkpoint.whole(out), None) is not None


def restore(out: Path, config: TrainConfig, header: Header, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """state.json of the last checkpoint, its weights put back; {} for a new run.

    Without LAST (a kill in the midst of the first save, or somebody's slip) the newest checkpoint is the last one: they appear whole. A LAST that
    a kill left behind the newest is put right. Raises ValueError where anything is damaged, and where configuration or data are others than those
    of the checkpoint.
    """
    if not has_checkpoint(out):
        return {}
    if not (out / "LAST").is_file():
        files.write_text(out / "LAST", next(checkpoint.whole(out)).name + "\n")
    folder = checkpoint.locate(out)
    try:
        state = training_state.restore(folder, objective, ema, optimizer)
    except ValueError as error:
        raise ValueError(f"{error}; move {folder} and {out / 'LAST'} away to go on from the checkpoint before it") from error
    path = folder / states.FILE
    _compare(state["config"], path, config)
    try:
        stored = states.header_in(state)
        states.agree(state, folder, config, objective.alignment.taps, ("model", "ema"))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if stored is not None:
        _compare_data(out, stored, header)
    if (out / "LAST").read_text().strip() != folder.name:
        files.write_text(out / "LAST", folder.name + "\n")
    return state


def _compare_data(out: Path, stored: Header, header: Header) -> None:
    """Raises ValueError where a run was trained on other data than those of `header`."""
    before, now = asdict(stored), asdict(header)
    for key, value in now.items():
        same_rows = key == "data" and (stored.rows_sha or stored.options_sha)  # the folder is called otherwise: its rows are compared
        unknown = key == "rows_sha" and not stored.rows_sha  # a run from before rows had checksums
        if before[key] != value and not same_rows and not unknown:
            how = "; they were encoded elsewhere, or of other pictures: copy the cache from there" if key == "rows_sha" else ""
            raise ValueError(f"--resume: {out} was trained on data whose {key} was {before[key]!r}; the cache now says {value!r}{how}")


def prune(out: Path, keep_last: int, keep_every: int) -> None:
    """Deletes checkpoints but the last `keep_last` (0: all stay) and those of steps that are multiples of `keep_every` (0: none).

    The one that LAST names always stays. Those that are not whole count as none: they are left, and do not push out others.
    """
    if not keep_last:
        return
    last = (out / "LAST").read_text().strip()
    for folder in list(checkpoint.whole(out))[keep_last:]:
        if folder.name != last and not (keep_every and int(folder.name) % keep_every == 0):
            try:
                training_state.discard(folder)
            except OSError as error:
                print(f"note: {folder}: cannot be deleted ({error.strerror}); it stays", file=sys.stderr)
