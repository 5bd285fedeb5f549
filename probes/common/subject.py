"""What every probe is given: the checkpoint, its data, and the columns that every row shares."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import gsnr
from gsnr.probes.common.options import ProbeOptions
from gsnr.table import METRIC_COLUMNS, NAN
from gsnr.train import opening, vae
from gsnr.train.alignments import ahpa
from gsnr.train.convert import conversion, foreign
from gsnr.train.data.cache import Header, Split
from gsnr.train.data.heldout import order, require
from gsnr.train.interpolant import log_snr
from gsnr.train.models.backbone import Backbone
from gsnr.train.runs import checkpoint
from gsnr.train.runs.checkpoint import Checkpoint, Weights


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded checkpoint, its model on `device`, with the cache it is measured on. again: reads the same checkpoint, with weights of choice.

    align_from: another checkpoint, whose alignment is measured in place of the checkpoint's own. at: a block, in place of the aligned one.
    """

    checkpoint: Checkpoint
    again: Callable[[Weights], Checkpoint]
    header: Header
    splits: dict[str, Split]
    created: str
    align_from: Checkpoint | None = None
    at: int | None = None

    def __post_init__(self) -> None:
        self.checkpoint.model.to(self.device)

    @property
    def aligned(self) -> Checkpoint:
        """The checkpoint whose alignment is the "own" target."""
        return self.align_from or self.checkpoint

    @property
    def tap(self) -> int:
        """The block that is aligned (the first of several); for a checkpoint without an alignment, the one that AHPA would tap."""
        if self.at is not None:
            return self.at
        taps = self.aligned.alignment.taps
        return taps[0] if taps else ahpa.Config.default_tap(self.checkpoint.config.model.depth)

    @property
    def default_out(self) -> Path:
        """RUN/probes. Raises ValueError for a checkpoint that lies in no run."""
        return checkpoint.run_output(self.checkpoint, "probes")

    @cached_property
    def ema(self) -> Backbone:
        """The averaged backbone, whatever weights are probed: the teacher of alignments to it."""
        if self.checkpoint.weights == "ema":
            return self.checkpoint.model
        return self.again("ema").model.to(self.device)

    def require_images(self, options: ProbeOptions) -> None:
        """Raises ValueError where the held-out split holds fewer images."""
        require(self.splits["heldout"], options.n_images, options.first_image)

    def images(self, options: ProbeOptions) -> NDArray[np.int64]:
        """Numbers of the held-out images that are measured, in the order in which `heldout_batches` takes them."""
        return order(self.splits["heldout"].size)[options.first_image : options.first_image + options.n_images]

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def columns(self, probe: str, options: ProbeOptions) -> dict[str, Any]:
        """Columns with the same value in every row of a probe."""
        c, m = self.checkpoint, self.checkpoint.config.model
        return {
            "run": c.run_name,
            "checkpoint": c.folder.name,
            "checkpoint_sha": c.sha,
            "step": c.step,
            "weights": c.weights,
            "model": f"{'MMDiT' if m.text else 'SiT'} depth {m.depth} width {m.hidden_size} patch {m.patch_size}",
            "vae": self.header.vae,
            "data": self.header.data,
            "probe": probe,
            "seed": options.seed,
            "gsnr_version": gsnr.__version__,
            "torch_version": torch.__version__,
            "created": self.created,
        }


def _reader(ckpt: Path, data: str | None, model: str | None) -> Callable[[Weights], Checkpoint]:
    """What reads a checkpoint: a run, a checkpoint folder, or another project's file, about which it says what it takes it for.

    Raises ValueError naming every flag that a file needs and lacks.
    """
    if not ckpt.is_file():
        if model is not None:
            raise ValueError(f"--model {model}: only a raw .pt file needs it; {ckpt} says itself which model it is")
        return lambda weights: opening.last_checkpoint(ckpt, weights)
    found = foreign.read(ckpt)
    asked = {"--data CACHE": data is None, "--model SiT-DEPTHxWIDTHxHEADS/PATCH": found.attention_heads(model) is None}
    lacking = [flag for flag, lacks in asked.items() if lacks]
    if lacking:
        raise ValueError(
            f"{ckpt}: a file of {found.kind}, which does not say everything; add {' and '.join(lacking)} (--vae ID checks the cache's VAE)"
        )
    plan = conversion.make_plan(found, model)
    print("\n".join(plan.notes))
    return lambda weights: conversion.load(found, plan, weights)


def _aligned_from(path: Path, weights: str, header: Header, depth: int) -> Checkpoint:
    """Raises ValueError for a checkpoint whose alignment cannot be measured on these data and a backbone of this depth."""
    found = opening.last_checkpoint(path, weights)
    if not found.alignment.parts:
        raise ValueError(f"--align-from {path}: aligned to nothing; name a run of alignment 'ahpa'")
    missing = [group for group in found.alignment.needs if group not in header.groups]
    if missing:
        raise ValueError(f"--align-from {path}: reads features of {missing[0]}, which {header.data!r} does not hold; name other data with --data")
    if found.alignment.taps[0] > depth:
        raise ValueError(f"--align-from {path}: aligned at block {found.alignment.taps[0]}; the checkpoint has {depth}")
    return found


def load(
    ckpt: Path,
    *,
    data: str | None,
    vae_name: str | None,
    model: str | None,
    weights: str,
    align_from: Path | None = None,
    control: bool = True,
) -> Subject:
    """Opens a checkpoint and its data, under the negative control that it was trained with (unless not `control`). Raises ValueError for anything
    missing, damaged or mismatched."""
    read = _reader(ckpt, data, model)
    loaded = read(weights)  # type: ignore[arg-type]
    again = read if ckpt.is_file() else partial(checkpoint.load, loaded.folder)  # the same, if the run goes on meanwhile
    named = None if vae_name is None else vae.load(vae_name)
    header, splits = opening.data_of(loaded, data, control=control)
    if named is not None and named.sha != header.vae_sha:
        raise ValueError(f"--vae {vae_name}: not the VAE that made the latents ({header.vae!r}, {header.vae_sha[:12]})")
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    other = None if align_from is None else _aligned_from(align_from, weights, header, loaded.config.model.depth)
    return Subject(checkpoint=loaded, again=again, header=header, splits=splits, created=created, align_from=other)


NOWHERE = {"t_low": NAN, "t_high": NAN, "logsnr_low": NAN, "logsnr_high": NAN}  # of rows that belong to no time


def sample_rows(
    key: dict[str, Any], images_N: NDArray[np.int64], t_N: list[float], losses_N: list[float], estimate: gsnr.Estimate
) -> list[dict[str, Any]]:
    """Rows of kind "samples" of one cell. key: its columns, among others; those that samples have are taken."""
    assert estimate.r_n is not None
    here = {name: key[name] for name in ("run", "checkpoint", "vae", "target", "control", "projector", "group", "bin")}
    columns = zip(images_N.tolist(), t_N, losses_N, estimate.q_n.tolist(), estimate.r_n.tolist(), strict=True)
    return [here | {"image_id": i, "t": t, "loss": loss, "q": q, "r": r} for i, t, loss, q, r in columns]


def variance_rows(key: dict[str, Any], estimate: gsnr.Estimate) -> list[dict[str, Any]]:
    """Rows of kind "metrics": the noise of an image's mean gradient over its draws, split into a part between and a part within images; none for
    one draw. key: columns of the cell."""
    if estimate.draws == 1:
        return []
    here = {name: key[name] for name in METRIC_COLUMNS if name in key} | {"low": NAN, "high": NAN}
    return [here | {"metric": name, "value": getattr(estimate, name)} for name in ("noise_between", "noise_within")]


def bin_columns(index: int, low: float, high: float) -> dict[str, Any]:
    """Columns of a bin of t; logSNR falls as t rises, so logsnr_low belongs to t_high."""
    snr = log_snr(torch.tensor([low, high], dtype=torch.float64).numpy())
    return {"bin": index, "t_low": low, "t_high": high, "logsnr_low": float(snr[1]), "logsnr_high": float(snr[0])}
