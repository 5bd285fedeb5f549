"""Checkpoints: safetensors and JSON, written aside and renamed, so that a kill at any moment leaves the last good one.

    RUN/LAST                             name of the last good checkpoint
    RUN/checkpoints/0000800/state.json   step, resolved config, cache header, versions, time convention, tap, latent scale
                           /model, ema   the backbone, raw and averaged: diffusers folders (SiT.from_pretrained reads them)
                           /alignment.safetensors, alignment_ema.safetensors   router and projector
                           /optimizer.safetensors

Loading never unpickles anything. `gsnr convert` writes the same folder from another project's file: without optimizer, and with `cache`
null, since those files name neither VAE nor data; `groups` then holds the shapes of the features that the alignment's head was built for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gsnr
from gsnr import files, plugins
from gsnr.options import build
from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import TrainConfig, check
from gsnr.train.data.cache import Header, header_from
from gsnr.train.data.latents import Scaling
from gsnr.train.interpolant import TIME_CONVENTION
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective, make_alignment
from gsnr.train.optimizer import names as parameter_names

SCHEMA_VERSION = 2  # 1 named the router's and projector's tensors otherwise
ADAMW = {"step", "exp_avg", "exp_avg_sq"}  # what the optimizer keeps for a parameter
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # diffusers' name
Weights = Literal["ema", "raw"]
STATE: dict[str, Any] = {"step": int, "config": dict, "cache": (dict, NoneType), "latent_scale": (int, float, NoneType), "taps": list}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back. model: SiT and alignment: its router and projector, both in eval mode, float32, on the CPU.

    sha: SHA-256 over the files of the backbone and of the alignment. run_folder: None for a checkpoint that lies in no run; run_name: what
    tables call the run. header: None where the checkpoint does not know its data. groups: shapes of the features that the alignment was
    built for. latent_scale: raw latent -> final latent; None where it is not one factor.
    """

    folder: Path
    run_folder: Path | None
    run_name: str
    step: int
    weights: Weights
    sha: str
    config: TrainConfig
    header: Header | None
    groups: Mapping[str, tuple[int, ...]]
    latent_scale: float | None
    model: SiT
    alignment: AlignmentModule


def _flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's state as "<parameter>|exp_avg" and so on; parameters in the order of `names`."""
    state = optimizer.state_dict()["state"]
    return {f"{name}|{key}": value.contiguous() for i, name in enumerate(names) if i in state for key, value in state[i].items()}


def describe(step: int, config: TrainConfig, taps: tuple[int, ...], latent_scale: float | None) -> dict[str, Any]:
    """What every state.json says, beside `cache`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "time_convention": TIME_CONVENTION,
        "latent_scale": latent_scale,
        "taps": taps,
        "config": asdict(config),
        "versions": {"gsnr": gsnr.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def check_weights(weights: str) -> None:
    """Raises ValueError listing the valid names."""
    if weights not in ("ema", "raw"):
        raise ValueError(f"--weights {weights!r} does not exist; choose from ema, raw")


def weight_files(folder: Path, weights: Weights) -> tuple[Path, Path]:
    """Where the backbone's and the alignment's tensors lie."""
    backbone, alignment = ("ema", "alignment_ema") if weights == "ema" else ("model", "alignment")
    return folder / backbone / WEIGHTS_FILE, folder / f"{alignment}.safetensors"


def write_weights(folder: Path, weights: Weights, model: SiT, alignment: AlignmentModule) -> None:
    backbone_file, alignment_file = weight_files(folder, weights)
    model.save_pretrained(backbone_file.parent)
    save_file({k: v.contiguous() for k, v in alignment.state_dict().items()}, alignment_file)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """state.json, the last file of a checkpoint; afterwards all of the folder outlives a power loss."""
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for path in [*folder.rglob("*"), folder]:
        files.sync(path)


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
    """Writes checkpoint `step` of a run and points LAST at it. Raises ValueError where it cannot be written (the last good one stays)."""
    folder = run / "checkpoints" / f"{step:07d}"
    aside = run / "checkpoints" / f".{step:07d}.{os.getpid()}"
    scale = None if header.channel_scale else header.scale
    state = describe(step, config, objective.alignment.taps, scale) | {"cache": asdict(header), **extra}
    try:
        _clear_asides(run)
        aside.mkdir(parents=True)
        write_weights(aside, "raw", objective.model, objective.alignment)
        write_weights(aside, "ema", ema.model, ema.alignment)
        flat = _flatten_optimizer(optimizer, parameter_names(objective, optimizer))
        save_file(flat, aside / "optimizer.safetensors")
        write_state(aside, state | {"optimizer_tensors": len(flat)})
        shutil.rmtree(folder, ignore_errors=True)  # a leftover that LAST never pointed at
        os.rename(aside, folder)
        files.sync(folder.parent)
        files.write_text(run / "LAST", folder.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ValueError(f"{folder}: the checkpoint cannot be written ({error}); the last good one is untouched") from error
    return folder


def _clear_asides(run: Path) -> None:
    """Removes what a killed save left behind."""
    for leftover in (run / "checkpoints").glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def locate(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or a run's last one. Raises ValueError where it is neither."""
    if not path.exists():
        raise ValueError(f"{path}: no such run or checkpoint folder")
    if path.is_file():
        raise ValueError(f"{path}: a file; name a run folder or a checkpoint folder (`gsnr convert --ckpt {path} --out DIR` makes one)")
    if (path / "state.json").is_file():
        return path
    if not (path / "LAST").is_file():
        raise ValueError(f"{path}: neither a run folder (it has no LAST) nor a checkpoint (it has no state.json)")
    try:
        name = (path / "LAST").read_text().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path / 'LAST'}: damaged ({error})") from error
    folder = path / "checkpoints" / name
    if not name or not (folder / "state.json").is_file():
        raise ValueError(f"{path / 'LAST'}: points at {name!r}, which is no checkpoint in {folder.parent}")
    return folder


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises ValueError naming it where it is missing, truncated or otherwise damaged."""
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or truncated ({str(error).splitlines()[0]})") from error


def load_into(module: nn.Module, path: Path) -> None:
    """Loads weights strictly. Raises ValueError naming the file and the first tensor that does not fit."""
    assign(module, read_tensors(path), path)


def assign(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies weights strictly. Raises ValueError naming the file that they are from and the first tensor that does not fit."""
    own = module.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in tensors or name not in own:
            raise ValueError(f"{path}: {'lacks' if name not in tensors else 'has an unexpected'} tensor {name!r}")
        if own[name].shape != tensors[name].shape:
            raise ValueError(f"{path}: tensor {name!r} has shape {tuple(tensors[name].shape)}, the model {tuple(own[name].shape)}")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{path}: tensor {name!r} holds values that are not finite")
    module.load_state_dict(tensors)


def read_state(folder: Path) -> dict[str, Any]:
    """state.json. Raises ValueError where it is damaged or of another schema version."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: damaged (not a mapping)")
    if state.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {state.get('schema_version')}, this version reads {SCHEMA_VERSION}")
    for key, kinds in STATE.items():
        if key not in state or not isinstance(state[key], kinds) or isinstance(state[key], bool):
            raise ValueError(f"{path}: damaged (no valid {key!r})")
    if state["step"] < 0:
        raise ValueError(f"{path}: damaged (step {state['step']})")
    return state


def load(path: Path | str, weights: Weights = "ema") -> Checkpoint:
    """Reads a run's last checkpoint, or one checkpoint folder. Raises ValueError for anything missing, damaged or mismatched."""
    check_weights(weights)
    folder = locate(Path(path))
    state = read_state(folder)
    try:
        config: TrainConfig = build(TrainConfig, state["config"])
        check(config)
        header = None if state["cache"] is None else header_from(state["cache"])
        groups: Mapping[str, tuple[int, ...]] = {k: tuple(v) for k, v in state["groups"].items()} if header is None else header.groups
        shape = (config.model.in_channels, config.model.input_size, config.model.input_size)
        if header is not None and header.latent_shape != shape:
            raise ValueError(f"latents of shape {header.latent_shape} for a model of {' x '.join(map(str, shape))}")
        model = SiT(**asdict(config.model))
        alignment = make_alignment(config.alignment, config.model, groups)
    except plugins.Missing as error:
        raise ValueError(f"{folder / 'state.json'}: {error}") from error
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'state.json'}: damaged, or of another version ({' '.join(str(error).split())})") from error
    backbone_file, alignment_file = weight_files(folder, weights)
    load_into(model, backbone_file)
    load_into(alignment, alignment_file)
    digest = hashlib.sha256(backbone_file.read_bytes())
    digest.update(alignment_file.read_bytes())
    lies_in_run = ((run := folder.resolve().parent.parent) / "LAST").is_file()
    return Checkpoint(
        folder=folder,
        run_folder=run if lies_in_run else None,
        run_name=run.name if lies_in_run else folder.name,
        step=state["step"],
        weights=weights,
        sha=digest.hexdigest(),
        config=config,
        header=header,
        groups=groups,
        latent_scale=state["latent_scale"],
        model=model.eval(),
        alignment=alignment.eval(),
    )


def load_model(path: Path | str, weights: Weights = "ema") -> nn.Module:
    """The backbone in eval mode: model(x, t, y) -> velocity; x (B,C,H,W), t (B,), y (B,); t = 1 is noise.

    path: a run folder (its last checkpoint) or one checkpoint folder. Raises ValueError as `load` does.
    """
    return load(path, weights).model


def restore(run: Path, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts a run's last checkpoint back into a training state, exactly; returns state.json."""
    folder = locate(run)
    for module, (backbone_file, alignment_file) in ((objective, weight_files(folder, "raw")), (ema, weight_files(folder, "ema"))):
        load_into(module.model, backbone_file)
        load_into(module.alignment, alignment_file)
    state, path = read_state(folder), folder / "optimizer.safetensors"
    flat = read_tensors(path)
    parameters = dict(objective.named_parameters())
    names = parameter_names(objective, optimizer)
    if len(flat) != state.get("optimizer_tensors", len(flat)):
        raise ValueError(f"{path}: damaged (holds {len(flat)} tensors, not {state['optimizer_tensors']})")
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, slot = key.rpartition("|")
        wanted = torch.Size() if slot == "step" else parameters[name].shape if name in parameters else None
        if slot not in ADAMW or value.shape != wanted:
            raise ValueError(f"{path}: damaged (tensor {key!r} of shape {tuple(value.shape)} is not AdamW's for this model)")
        per_parameter.setdefault(names.index(name), {})[slot] = value
    for number, slots in per_parameter.items():
        if slots.keys() != ADAMW:
            raise ValueError(f"{path}: damaged (lacks {min(ADAMW - slots.keys())!r} of {names[number]!r})")
    window = state.get("window", {})
    if not isinstance(window, dict) or not all(isinstance(value, int | float) for value in window.values()):
        raise ValueError(f"{folder / 'state.json'}: damaged (its `window`)")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": per_parameter})
    return state


def run_output(checkpoint: Checkpoint, name: str) -> Path:
    """RUN/name for what a command writes by default. Raises ValueError for a checkpoint that lies in no run."""
    if checkpoint.run_folder is None:
        raise ValueError(f"{checkpoint.folder}: lies in no run folder; say where to write with --out")
    return checkpoint.run_folder / name


def decoding(checkpoint: Checkpoint) -> Scaling:
    """Between the VAE's latents and the model's. Raises ValueError for a checkpoint that does not know it."""
    if checkpoint.header is not None:
        return checkpoint.header.scaling
    if checkpoint.latent_scale is None:
        raise ValueError(f"{checkpoint.folder}: trained on latents normalised channel by channel, by statistics it does not hold; cannot be decoded")
    return Scaling(factor=checkpoint.latent_scale)


def require_same_data(checkpoint: Checkpoint, header: Header, groups: tuple[str, ...]) -> None:
    """Raises ValueError where a cache was made by another VAE than the one the checkpoint was trained with, or holds features (of these groups) of
    another shape than its alignment's. A checkpoint that does not know its VAE is warned about where the scale of the latents tells another one.
    """
    was = checkpoint.header
    if was is not None and header.vae_sha != was.vae_sha:
        raise ValueError(
            f"{checkpoint.folder}: trained with VAE {was.vae!r} ({was.vae_sha[:12]}), but the data were encoded by {header.vae!r} "
            f"({header.vae_sha[:12]}); name data of the same VAE with --data"
        )
    for group in groups:
        if was is not None and group == "teacher" and header.teacher_sha != was.teacher_sha:
            raise ValueError(
                f"{checkpoint.folder}: aligned to teacher {was.teacher!r} ({was.teacher_sha[:12]}); the cache holds features of {header.teacher!r} "
                f"({header.teacher_sha[:12]}); name other data with --data"
            )
        if was is not None and group != "teacher" and header.resampling != was.resampling:
            raise ValueError(
                f"{checkpoint.folder}: aligned to features resampled {was.resampling!r}, those of the cache were resampled {header.resampling!r}"
            )
        if header.groups[group] != checkpoint.groups[group]:
            raise ValueError(
                f"{checkpoint.folder}: its alignment is to {group} features of shape {checkpoint.groups[group]}; those of the cache have "
                f"{header.groups[group]}; name other data with --data"
            )
    if checkpoint.header is None and (None if header.channel_scale else header.scale) != checkpoint.latent_scale:
        was_scaled = "channel by channel" if checkpoint.latent_scale is None else f"by {checkpoint.latent_scale}"
        is_scaled = "channel by channel" if header.channel_scale else f"by {header.scale}"
        print(
            f"warning: {checkpoint.folder} was trained on latents scaled {was_scaled}, those of the cache are scaled {is_scaled}",
            file=sys.stderr,
        )
