"""What training goes on from, saved and put back exactly: weights, moving average and AdamW's state.

Nothing that is not finite is written over what is, and nothing is put back that AdamW cannot have left.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gsnr import checksums, files
from gsnr.train.config import TrainConfig
from gsnr.train.data.cache import Header
from gsnr.train.objective import Objective
from gsnr.train.optimizer import names as parameter_names
from gsnr.train.runs import checkpoint
from gsnr.train.runs import state as states

ADAMW = {"step", "exp_avg", "exp_avg_sq"}  # what the optimizer keeps for a parameter
FILE = "optimizer.safetensors"


def _flatten(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's state as "<parameter>|exp_avg" and so on; parameters in the order of `names`."""
    state = optimizer.state_dict()["state"]
    return {f"{name}|{key}": value.contiguous() for i, name in enumerate(names) if i in state for key, value in state[i].items()}


def _sane(name: str, value: Tensor) -> Tensor:
    """A boolean on the value's device: finite, and a second moment or a count of steps also not negative."""
    if not value.numel():
        return torch.tensor(True, device=value.device)
    low, high = torch.aminmax(value)  # NaN where there is any; one pass, and no copy
    sane = low.isfinite() & high.isfinite()
    return sane & (low >= 0) if name.endswith(("|exp_avg_sq", "|step")) else sane


def _unsound(named: Iterator[tuple[str, Tensor]]) -> str | None:
    """The first name whose values are not sane; the device is asked once."""
    names, sane = zip(*((name, _sane(name, value)) for name, value in named), strict=True)
    device = next((x.device for x in sane if x.device.type != "cpu"), sane[0].device)  # AdamW's counts may lie on the CPU
    flags = torch.stack([x.to(device, non_blocking=True) for x in sane]).tolist()
    return next((name for name, good in zip(names, flags, strict=True) if not good), None)


def _named(objective: Objective, ema: Objective, flat: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from objective.state_dict().items()
    yield from ((f"moving average of {name}", value) for name, value in ema.state_dict().items())
    yield from flat.items()


def save(
    run: Path,
    *,
    step: int,
    objective: Objective,
    ema: Objective,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    header: Header,
    extra: dict[str, Any],
) -> Path:
    """Writes checkpoint `step` of a run and points LAST at it.

    Raises ValueError where it, or LAST, cannot be written, and where a value is not finite. The last good one stays.
    """
    folder = run / "checkpoints" / f"{step:07d}"
    aside = run / "checkpoints" / f".{step:07d}.{os.getpid()}"
    flat = _flatten(optimizer, parameter_names(objective, optimizer))
    unsound = _unsound(_named(objective, ema, flat))
    if unsound is not None:
        raise ValueError(f"{folder}: not saved, for {unsound!r} holds values that are not finite (or below 0); the last good one is untouched")
    described = states.describe(step, config, objective.alignment.taps, states.latent_scale_of(header))
    state = described | {"cache": header.written(), **extra, "optimizer_tensors": len(flat)}
    try:
        _clear_asides(run)
        aside.mkdir(parents=True)
        save_file(flat, aside / FILE)
        with ThreadPoolExecutor(1) as beside:  # as large as the others together: hashed while they are written
            hashed = beside.submit(checksums.entry_of, aside / FILE)
            checkpoint.write_weights(aside, "raw", objective.model, objective.alignment)
            checkpoint.write_weights(aside, "ema", ema.model, ema.alignment)
        checkpoint.write_state(aside, state, {FILE: hashed.result()})
        if folder.exists():  # it is not whole: else training would have gone on from it
            discard(folder)
        os.rename(aside, folder)
        files.sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ValueError(f"{folder}: the checkpoint cannot be written ({error}); the last good one is untouched") from error
    try:
        files.write_text(run / "LAST", folder.name + "\n")
    except OSError as error:
        raise ValueError(f"{run / 'LAST'}: cannot be written ({error}); checkpoint {folder} is there and whole, --resume goes on from it") from error
    return folder


def discard(folder: Path) -> None:
    """Deletes a checkpoint: out of the way at once, so that none is there in part. What cannot be deleted, or is left by a kill, goes with the next
    save. Raises OSError where it cannot be renamed."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _clear_asides(run: Path) -> None:
    """Removes what a save or a deletion that was killed left behind."""
    for leftover in (run / "checkpoints").glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def restore(folder: Path, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts a checkpoint back into a training state, exactly; returns state.json. Raises ValueError naming the file at fault. One process of each
    machine compares the checksums."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        checksums.Manifest.read(folder).check_all()
    state, path = states.read(folder), folder / FILE
    files_of = ((objective, checkpoint.weight_files(folder, "raw")), (ema, checkpoint.weight_files(folder, "ema")))
    for module, (backbone_file, alignment_file) in files_of:
        checkpoint.load_into(module.model, backbone_file)
        checkpoint.load_into(module.alignment, alignment_file)
    per_parameter = _adamw(path, checkpoint.read_tensors(path), objective, parameter_names(objective, optimizer), state)
    window = state.get("window", {})
    if not isinstance(window, dict) or not all(isinstance(value, int | float) and math.isfinite(value) for value in window.values()):
        raise ValueError(f"{folder / states.FILE}: damaged (its `window`)")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": per_parameter})
    return state


def _adamw(path: Path, flat: dict[str, Tensor], objective: Objective, names: list[str], state: dict[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by the number of the parameter. Raises ValueError for what AdamW cannot have left of this model."""
    if len(flat) != state.get("optimizer_tensors", len(flat)):
        raise ValueError(f"{path}: damaged (holds {len(flat)} tensors, not {state['optimizer_tensors']})")
    parameters = dict(objective.named_parameters())
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, slot = key.rpartition("|")
        wanted = torch.Size() if slot == "step" else parameters[name].shape if name in parameters else None
        if slot not in ADAMW or value.shape != wanted:
            raise ValueError(f"{path}: damaged (tensor {key!r} of shape {tuple(value.shape)} is not AdamW's for this model)")
        if not value.is_floating_point() or not _sane(key, value) or (slot == "step" and value > state["step"]):
            raise ValueError(f"{path}: damaged (tensor {key!r} holds values that AdamW cannot have left: not finite, below 0 or of another kind)")
        per_parameter.setdefault(names.index(name), {})[slot] = value
    for number, slots in per_parameter.items():
        if slots.keys() != ADAMW:
            raise ValueError(f"{path}: damaged (lacks {min(ADAMW - slots.keys())!r} of {names[number]!r})")
    return per_parameter
