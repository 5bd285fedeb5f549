"""What every probe is given: the checkpoint, its data, the options of the command line, and the columns that every row shares."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import gsnr
from train import checkpoint, trainer, vae
from train.alignments import ahpa
from train.config import resolve
from train.data.cache import Header, Split, open_cache
from train.interpolant import log_snr
from train.models.sit import SiT
from train.objective import check_cache


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line that a probe may read; they identify a measurement."""

    bins: int
    n_images: int
    engine: str
    seed: int
    batch_ref: int
    fit_steps: int
    draws: int = 1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded checkpoint with the cache it is measured on."""

    checkpoint: checkpoint.Checkpoint
    header: Header
    splits: dict[str, Split]
    created: str

    @property
    def tap(self) -> int:
        """The block that is aligned (the first of several); for a checkpoint without an alignment, the one that AHPA would tap."""
        taps = self.checkpoint.alignment.taps
        return taps[0] if taps else ahpa.Config.default_tap(self.checkpoint.config.model.depth)

    @property
    def default_out(self) -> Path:
        """RUN/probes. Raises ValueError for a checkpoint that lies in no run."""
        return checkpoint.run_output(self.checkpoint, "probes")

    @property
    def groups(self) -> tuple[str, ...]:
        """The feature groups that any of the compared targets reads."""
        return tuple(dict.fromkeys([*self.checkpoint.alignment.needs, *(g for g in ("G3", "G4") if g in self.header.groups)]))

    @cached_property
    def ema(self) -> SiT:
        """The averaged backbone, whatever weights are probed: the teacher of alignments to it."""
        if self.checkpoint.weights == "ema":
            return self.checkpoint.model
        return checkpoint.load(self.checkpoint.folder, "ema").model.to(self.device)

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def columns(self, probe: str, options: Options) -> dict[str, Any]:
        """Columns with the same value in every row of a probe."""
        c, m = self.checkpoint, self.checkpoint.config.model
        return {
            "run": c.run_folder.name if c.run_folder else c.folder.name,
            "checkpoint": c.folder.name,
            "checkpoint_sha": c.sha,
            "step": c.step,
            "weights": c.weights,
            "model": f"SiT depth {m.depth} width {m.hidden_size} patch {m.patch_size}",
            "vae": c.header.vae,
            "data": self.header.data,
            "probe": probe,
            "seed": options.seed,
            "gsnr_version": gsnr.__version__,
            "torch_version": torch.__version__,
            "created": self.created,
        }


def load(ckpt: Path, *, data: str | None, vae_name: str | None, model: str | None, weights: str) -> Subject:
    """Opens a checkpoint and its data. Raises ValueError for anything missing, damaged or mismatched."""
    if model is not None:
        raise ValueError(f"--model {model}: only a raw .pt file needs it; {ckpt} says itself which model it is")
    loaded = checkpoint.load(ckpt, weights)  # type: ignore[arg-type]
    if vae_name is not None:
        named = vae.load(vae_name)
        if named.sha != loaded.header.vae_sha:
            raise ValueError(f"--vae {vae_name}: not the VAE this checkpoint was trained with ({loaded.header.vae!r}, {loaded.header.vae_sha[:12]})")
    if data is None or data == loaded.config.data.path:
        header, splits = trainer.open_data(loaded.config)
    elif data == "demo":
        header, splits = trainer.open_data(resolve({"data": {"path": "demo"}}))
    else:
        header, splits = open_cache(Path(data), loaded.alignment.needs)
    checkpoint.require_same_vae(loaded, header)
    check_cache(loaded.config.model, header)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Subject(checkpoint=loaded, header=header, splits=splits, created=created)


def bin_columns(index: int, low: float, high: float) -> dict[str, Any]:
    """Columns of a bin of t; logSNR falls as t rises, so logsnr_low belongs to t_high."""
    snr = log_snr(torch.tensor([low, high], dtype=torch.float64).numpy())
    return {"bin": index, "t_low": low, "t_high": high, "logsnr_low": float(snr[1]), "logsnr_high": float(snr[0])}
