"""state.json of a checkpoint: what it says, and that it agrees with itself, with the tensors beside it and with its folder."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

import diffusers
import torch

import gsnr
from gsnr import checksums, files
from gsnr.train.config import TrainConfig
from gsnr.train.data.cache import Header, header_from
from gsnr.train.interpolant import TIME_CONVENTION

SCHEMA_VERSION = 2  # 1 named the router's and projector's tensors otherwise
FILE = "state.json"
FIELDS: dict[str, Any] = {
    "step": int,
    "time_convention": str,
    "config": dict,
    "cache": (dict, NoneType),
    "latent_scale": (int, float, NoneType),
    "taps": list,
}


def latent_scale_of(header: Header) -> float | None:
    """Raw latent -> final latent; None where it is not one factor."""
    return None if header.channel_scale else header.scale


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
        "manifest": checksums.MANIFEST,
    }


def read(folder: Path) -> dict[str, Any]:
    """Raises ValueError where it is damaged, of another schema version, or not of this folder."""
    path = folder / FILE
    try:
        state = files.read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: damaged (not a mapping)")
    if state.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {state.get('schema_version')}, this version reads {SCHEMA_VERSION}")
    for key, kinds in FIELDS.items():
        if key not in state or not isinstance(state[key], kinds) or isinstance(state[key], bool):
            raise ValueError(f"{path}: damaged (no valid {key!r})")
    if state["step"] < 0 or (folder.parent.name == "checkpoints" and folder.name.isdigit() and int(folder.name) != state["step"]):
        raise ValueError(f"{path}: damaged (step {state['step']})")
    if state["time_convention"] != TIME_CONVENTION:
        raise ValueError(f"{path}: its time convention is {state['time_convention']!r}, that of this version {TIME_CONVENTION!r}")
    scale = state["latent_scale"]
    if scale is not None and not (math.isfinite(scale) and scale):
        raise ValueError(f"{path}: damaged (its latent_scale is {scale})")
    if "manifest" in state and not (folder / checksums.MANIFEST).exists():
        raise ValueError(f"{folder / checksums.MANIFEST}: missing")
    return state


def header_in(state: dict[str, Any]) -> Header | None:
    """The header of the cache that it was trained on. Raises ValueError, TypeError, KeyError or AttributeError where there is no valid one, or
    where it contradicts the rest."""
    if state["cache"] is None:
        return None
    header = header_from(state["cache"])
    if state["latent_scale"] != latent_scale_of(header):
        raise ValueError(f"its latent_scale is {state['latent_scale']}, its cache's {latent_scale_of(header)}")
    return header


def agree(state: dict[str, Any], folder: Path, config: TrainConfig, taps: tuple[int, ...], backbones: tuple[str, ...]) -> None:
    """Against the alignment that its config makes and what diffusers wrote beside the backbone's tensors. Raises ValueError."""
    if state["taps"] != list(taps):
        raise ValueError(f"its taps are {state['taps']}, its alignment's {list(taps)}")
    for backbone in backbones:
        path = folder / backbone / "config.json"
        try:
            stored = files.read_json(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is missing or damaged: {error}") from error
        for key, value in asdict(config.model).items():
            if isinstance(stored, dict) and stored.get(key, value) != value:
                raise ValueError(f"its model's {key} is {value}, that of {backbone}/config.json {stored[key]}")
