"""Weights of the groups of VAE features with a stated objective, per bin of t, for the alignment of a checkpoint (`gsnr.mixtures`).

Each group's loss is the checkpoint's own with all the weight on that group, its layers alike, through its own projector; gradients are those of the
backbone. `weight` descends denoising most per unit of update power at batch --batch-ref, `agnostic` has the best G-SNR, both sum to 1; `share` is
`weight` in units of each loss's batch gradient; `descent` says what each target alone, and target "mixture", would lower denoising by. Where
nothing descends, `weight` is uniform and the descent of the mixture 0. `gsnr train --alignment.router table` reads this table.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gsnr import mixtures
from gsnr.probes.common.options import GradientOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns
from gsnr.table import NAN
from gsnr.train.alignments._routed import RoutedAlignment
from gsnr.train.callback import group_of
from gsnr.train.data.batches import Batch
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.noising import losses, noised
from gsnr.train.objective import Objective
from gsnr.train.parameter_groups import BACKBONE

SUMMARY = "weights of the groups of VAE features per bin of t that descend denoising most per unit of noise"
KIND = "metrics"
SCALES = ("bins", "n_images", "draws")
Options = GradientOptions


def cannot(subject: Subject, options: Options) -> str | None:
    alignment = subject.aligned.alignment
    if not isinstance(alignment, RoutedAlignment) or len(alignment.sources) < 2:
        return f"{subject.aligned.folder}: is not aligned to several groups of VAE features; probe a run of ahpa, static or uniform both"
    return None


def plan(subject: Subject, options: Options) -> list[str]:
    groups = getattr(subject.aligned.alignment, "sources", ())
    passes = 1 + len(groups) * (len(groups) + 1) // 2
    return [f"{options.bins} bins x {options.n_images} held-out images x {passes} gradients, of {len(groups)} groups, their pairs and denoising"]


def _outputs(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
    assert isinstance(model, Objective)
    x_t, extra = noised(model.model, batch)
    predicted, hidden = model.model.forward_with_taps(x_t, batch["t"], model.model.condition(batch), taps=model.alignment.taps, extra=extra)
    assert predicted is not None
    return losses(predicted, batch)["velocity"], hidden


def _group(k: int, model: nn.Module, batch: Batch, outputs: tuple[Tensor, dict[int, Tensor]]) -> Tensor:
    assert isinstance(model, Objective) and isinstance(model.alignment, RoutedAlignment)
    return model.alignment.group_loss(k, outputs[1], batch)


def _bin(subject: Subject, options: Options, place: int) -> Rows:
    low, high = options.edges(place)
    alignment = subject.aligned.alignment
    assert isinstance(alignment, RoutedAlignment)
    columns = tuple(dict.fromkeys((*alignment.columns, *subject.checkpoint.config.model.reads)))
    where = (subject.splits["heldout"], options.n_images, options.seed, "heldout", low, high, columns)
    drawn = heldout_batches(*where, batch=options.batch, repeats=options.draws, first=options.first_image)
    batches = [{key: x.to(subject.device) for key, x in (batch | {"image": torch.from_numpy(index)}).items()} for index, batch in drawn]
    objective = Objective(subject.checkpoint.model, alignment).to(subject.device).eval()
    p = mixtures.products(
        objective,
        {source: partial(_group, k) for k, source in enumerate(alignment.sources)},
        lambda model, batch, outputs: outputs[0],
        batches,
        group=BACKBONE,
        common=_outputs,
        groups=group_of,
        engine=options.engine,
        precision=options.precision,
        draws=options.draws,
        index="image",
    )
    batch = min(options.batch_ref, options.n_images)
    best, rival, intervals = mixtures.mixture(p, batch), mixtures.agnostic(p, batch), mixtures.weight_intervals(p, batch)
    a_KK = mixtures.power(p, batch)
    shared = subject.columns("mixture", options) | {"control": "none", "projector": "ckpt", "group": "all"} | bin_columns(place, low, high)
    rows = [shared | {"target": "mixture", "metric": "descent", "value": best.descent, "low": NAN, "high": NAN}]
    for k, source in enumerate(p.names):
        alone = mixtures.descent(torch.eye(len(p.names))[k].double().numpy(), p.c_K, a_KK)
        numbers = {"share": float(best.shares[k]), "agnostic": float(rival.weights[k]), "descent": alone}
        rows += [shared | {"target": source, "metric": name, "value": value, "low": NAN, "high": NAN} for name, value in numbers.items()]
        ends = dict(zip(("low", "high"), intervals[k], strict=True))
        rows.append(shared | {"target": source, "metric": "weight", "value": float(best.weights[k])} | ends)
    return {"metrics": rows}


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics"."""
    rows: Rows = {"metrics": []}
    for index in tqdm(range(options.bins), desc="mixture", unit="bin", mininterval=0.5, leave=False):
        rows["metrics"] += resume.rows(f"bin{index}", partial(_bin, subject, options, index))["metrics"]
    return rows, {"batch": min(options.batch_ref, options.n_images)}
