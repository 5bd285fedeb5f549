"""A checkpoint at another resolution: a new start, never a continuation (`gsnr convert --resolution 512`).

All weights stay but the table of positions, which is computed for the new token grid (MAE's and DiT's sinusoids; nothing is interpolated). The
alignment's head is kept, for none of ours depends on the grid. Step 0, no optimizer, and no data: those of the old resolution no longer fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gsnr import files
from gsnr.train.config import CLASS_TOKEN
from gsnr.train.convert import conversion, foreign
from gsnr.train.models.build import build
from gsnr.train.models.layers import position_table
from gsnr.train.objective import make_alignment
from gsnr.train.runs import checkpoint
from gsnr.train.runs import state as states
from gsnr.train.runs.checkpoint import Checkpoint, Weights

PIXELS = 8  # a latent cell, a side, of the VAEs that the other projects use


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint of ours, or another project's file. open: reads some of its weights."""

    path: Path
    weights: tuple[Weights, ...]
    open: Callable[[Weights], Checkpoint]


def source_of(path: Path, kind: str, model: str | None) -> Source:
    """path: a run folder, a checkpoint folder or a foreign file; kind, model: see `gsnr convert`. Raises ValueError where it is none of them."""
    if path.is_dir():
        for flag, value, usual in (("--from", kind, "auto"), ("--model", model, None)):
            if value != usual:
                raise ValueError(f"{flag} {value}: is of a file; {path} is a folder of ours, which says itself what it holds; leave it out")
        folder = checkpoint.locate(path)
        kept: tuple[Weights, ...] = ("raw", "ema")
        there = tuple(weights for weights in kept if checkpoint.weight_files(folder, weights)[0].is_file())
        return Source(path=folder, weights=there or kept, open=lambda weights: checkpoint.load(folder, weights))
    found = foreign.read(path, kind)
    plan = conversion.make_plan(found, model)
    return Source(path=path, weights=tuple(found.states), open=lambda weights: conversion.load(found, plan, weights))


def pixels_of(was: Checkpoint) -> int:
    """An image's side that a checkpoint was trained at."""
    if was.header is not None:
        return was.header.resolution
    return PIXELS * was.config.model.input_size


def resized(was: Checkpoint, resolution: int) -> Checkpoint:
    """Raises ValueError for a side that makes no whole token grid, and for the one that it has."""
    model, before = was.config.model, pixels_of(was)
    if resolution == before:
        raise ValueError(f"--resolution {resolution}: {was.folder} is of that resolution; leave it out")
    token = before * model.patch_size // model.input_size
    if resolution < 1 or resolution % token:
        raise ValueError(f"--resolution {resolution}: must be a multiple of {token}, the pixels of a token of {was.folder}")
    grid = resolution // token
    config = replace(was.config, model=replace(model, input_size=grid * model.patch_size))
    groups = {name: shape if name == CLASS_TOKEN else (*shape[:2], grid, grid) for name, shape in was.groups.items()}
    backbone = build(config.model)
    backbone.load_state_dict(was.model.state_dict() | {"pos_embed": position_table(grid, model.hidden_size, model.extra_token is not None)})
    alignment = make_alignment(config.alignment, config.model, groups)
    checkpoint.assign(alignment, was.alignment.state_dict(), was.folder)
    return replace(was, step=0, config=config, header=None, groups=groups, model=backbone.eval(), alignment=alignment.eval())


def save(source: Source, resolution: int, out: Path) -> str:
    """Writes a checkpoint folder, whole or not at all; says what it is. Raises ValueError as `resized` does, and where `out` exists."""
    conversion.check_out(out)
    with files.making(out) as aside:
        for weights in source.weights:
            was = source.open(weights)
            made = resized(was, resolution)
            checkpoint.write_weights(aside, weights, made.model, made.alignment)
        origin = {"from": "resolution", "file": str(source.path), "sha256": was.sha, "step": was.step, "resolution": [pixels_of(was), resolution]}
        origin |= {} if was.header is None else {"vae": was.header.vae, "vae_sha": was.header.vae_sha}
        state = states.describe(0, made.config, made.alignment.taps, made.latent_scale)
        checkpoint.write_state(aside, state | {"cache": None, "groups": made.groups, "converted": origin})
    before, now = was.config.model.grid, made.config.model.grid
    return (
        f"a new start at {resolution} pixels: {now}x{now} tokens (from {before}x{before}), positions computed anew, "
        f"weights of step {was.step}, no optimizer"
    )
