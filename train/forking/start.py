"""A fork's run folder: it looks like a run that was stopped at the checkpoint's step, and training goes on from there with `--resume`.

Weights, moving average and AdamW's moments of the backbone are the checkpoint's, and so are those of the alignment where it is the same. A new
projector or router starts afresh, from the fork's seed. The batch of a step follows from (seed, step) alone, so all forks of a seed see the
same images, times, noise and dropped labels.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import gsnr
from gsnr import checksums, files
from gsnr.train import opening, optimizer
from gsnr.train.config import TrainConfig
from gsnr.train.objective import Objective
from gsnr.train.runs import checkpoint, place, training_state
from gsnr.train.trainer import make_objective

RECORD = "fork.json"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A checkpoint with all that training goes on from."""

    loaded: checkpoint.Checkpoint
    raw: Objective
    ema: Objective
    optimizer: torch.optim.AdamW
    scaler: dict[str, Any] | None


def require_training_state(loaded: checkpoint.Checkpoint) -> None:
    """Raises ValueError for a checkpoint that training cannot go on from."""
    if loaded.header is None or not (loaded.folder / training_state.FILE).is_file():
        raise ValueError(f"{loaded.folder}: was converted, and holds no optimizer's state; forks go on from a checkpoint of a run trained here")


def parent_of(loaded: checkpoint.Checkpoint) -> Parent:
    """Raises ValueError for anything missing, damaged or mismatched."""
    require_training_state(loaded)
    assert loaded.header is not None
    raw = make_objective(loaded.config, loaded.header)
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    adamw = optimizer.make(raw, loaded.config.optim)
    state = training_state.restore(loaded.folder, raw, ema, adamw)
    return Parent(loaded=loaded, raw=raw, ema=ema, optimizer=adamw, scaler=state.get("scaler"))


def _moments(parent: Parent, objective: Objective, adamw: torch.optim.AdamW, own: bool) -> None:
    """AdamW's state of the parameters that both have: of the backbone, and where `own` of the alignment."""
    before = {name: parent.optimizer.state[p] for name, p in parent.raw.named_parameters() if p in parent.optimizer.state}
    for name, p in objective.named_parameters():
        if name in before and (own or name.startswith("model.")):
            adamw.state[p] = {key: value.clone() for key, value in before[name].items()}


def begin(folder: Path, parent: Parent, config: TrainConfig, record: dict[str, Any]) -> None:
    """Makes the run folder, as a whole or not at all. record: what its RECORD says of it.

    Raises ValueError for data that are not the checkpoint's, OSError where it cannot be written."""
    header, splits = opening.open_data(config)
    was = parent.loaded.header
    checkpoint.require_same_data(parent.loaded, header, ())
    if was is not None and was.rows_sha and was.rows_sha != header.rows_sha:
        raise ValueError(f"{parent.loaded.folder}: {header.data} holds other rows than when it was trained on them; forks need the same data")
    raw = make_objective(config, header)
    raw.alignment.calibrate(splits["train"])
    ema = copy.deepcopy(raw).requires_grad_(False).eval()
    own = config.alignment == parent.loaded.config.alignment
    for module, before in ((raw, parent.raw), (ema, parent.ema)):
        module.model.load_state_dict(before.model.state_dict())
        if own:
            module.alignment.load_state_dict(before.alignment.state_dict())
    adamw = optimizer.make(raw, config.optim)
    _moments(parent, raw, adamw, own)
    resolved = {"config": asdict(config), "versions": {"gsnr": gsnr.__version__, "torch": torch.__version__}}
    parts: dict[str, Any] = {"objective": raw, "ema": ema, "optimizer": adamw, "config": config, "header": header}
    extra = {"window": {}, "scaler": parent.scaler, "logs": {}}
    with files.making(folder) as aside:
        training_state.save(aside, step=parent.loaded.step, extra=extra, **parts)
        for name, values in ((RECORD, record), (place.STORED, resolved)):
            (aside / name).write_text(json.dumps(checksums.seal(values), indent=2) + "\n")
