"""Is a target easy, layer by layer and over t, and what does the router make of that?

For each layer of the cached features (as the checkpoint's own target normalises them), and for that target in each bin of t: the cosine of the
best constant vector, the mean norm, and the share of E||f||^2 that the mean vector holds. Beside them the router's mean weights, for the question
whether it chooses what is useful or what is easy. Shuffled and constant targets with projectors of their own are rows of probe `alignment`
(--controls).
Shapes: N images, T tokens, L layers, C channels.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from gsnr.probes.common.candidates import hidden_at_tap
from gsnr.probes.common.easy import Easiness
from gsnr.probes.common.options import BinOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import NOWHERE, Subject, bin_columns
from gsnr.probes.common.targets import own_target
from gsnr.table import NAN
from gsnr.train.alignments import TargetAlignment
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.priors.layers import CACHED
from gsnr.train.runs.folder import ROUTER_GRID

SUMMARY = "how much of each layer, and of the target over t, a constant vector explains; the router's weights beside it"
KIND = "metrics"
SCALES = ("bins", "n_images")
Options = BinOptions
Array = NDArray[np.float64]


def cannot(subject: Subject, options: Options) -> str | None:
    if subject.header.maps:
        return None
    return f"{subject.header.data!r} holds no features; prepare it again with --features, or name other data with --data"


def plan(subject: Subject, options: Options) -> list[str]:
    layers = sum(shape[0] for shape in subject.header.maps.values())
    own = _target_of(subject)
    target = f", and of target {own[0]!r} in {options.bins} bins" if own else ""
    return [f"constant vector, norm and mean of {layers} layers{target}, over {options.n_images} held-out images"]


def _target_of(subject: Subject) -> tuple[str, TargetAlignment] | None:
    """What the checkpoint was aligned to; None for no alignment, or one without a target."""
    own = own_target(subject)
    return (own[0], own[1]) if own is not None and isinstance(own[1], TargetAlignment) else None


@torch.no_grad()
def _layers(subject: Subject, options: Options, shared: dict[str, Any]) -> Rows:
    """Each layer of each group, which does not depend on t."""
    own = _target_of(subject)
    alignment = own[1].cpu() if own else None
    nowhere = NOWHERE | {"bin": -1}
    rows = []
    for group, shape in subject.header.maps.items():
        names = subject.header.layers[group] or tuple(str(i) for i in range(shape[0]))
        layers = [Easiness() for _ in names]
        for index in np.array_split(subject.images(options), -(-options.n_images // 64)):
            f_NLCgg = torch.from_numpy(subject.splits["heldout"].take(index, (group,))[group]).float()
            if alignment is not None and group in alignment.needs:
                f_NLCgg = alignment.normalised(group, f_NLCgg)
            f_NLCT = f_NLCgg.flatten(-2)
            for i, layer in enumerate(layers):
                layer.add(f_NLCT[:, i].transpose(1, 2))
        for name, layer in zip(names, layers, strict=True):
            rows += layer.rows(shared | nowhere | {"target": group, "group": name})
    return {"metrics": rows}


@torch.no_grad()
def _target(subject: Subject, options: Options, shared: dict[str, Any], index: int) -> Rows:
    """The checkpoint's own target in one bin, and the cosine that its own projector reaches there."""
    own = _target_of(subject)
    assert own is not None
    low, high = options.edges(index)
    name, alignment = own[0], own[1].to(subject.device)
    easiness = Easiness()
    heldout, needs = subject.splits["heldout"], tuple(dict.fromkeys((*alignment.needs, *subject.checkpoint.config.model.reads)))
    for _, batch in heldout_batches(heldout, options.n_images, options.seed, "heldout", low, high, needs, first=options.first_image):
        batch = alignment.prepare({key: x.to(subject.device) for key, x in batch.items()}, subject.ema)
        h_BTD = hidden_at_tap(subject, batch)
        easiness.add(alignment.target(batch, h_BTD), alignment.projector(h_BTD))
    return {"metrics": easiness.rows(shared | bin_columns(index, low, high) | {"target": name, "group": "target", "projector": "ckpt"})}


def _router(subject: Subject, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """alpha x beta of each layer, averaged over t; [] where nothing is learned over t alone, or layers were moved between groups."""
    own = own_target(subject)
    t_K = torch.linspace(0, 1, ROUTER_GRID)
    weights = own[1].cpu().router_weights(t_K) if own else {}
    if not weights or own is None or asdict(own[1].config).get("split"):
        return []
    nowhere = NOWHERE | {"bin": -1, "low": NAN, "high": NAN}
    rows = []
    for i, part in enumerate(name for name in weights if name != "beta"):
        group = CACHED.get(part, part)
        mean_L = (weights[part] * weights["beta"][:, i : i + 1]).mean(0).tolist()
        for name, value in zip(subject.header.layers[group], mean_L, strict=True):
            rows.append(shared | nowhere | {"target": group, "group": name, "metric": "router_weight", "value": value})
    return rows


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics": constant_cosine, norm, mean_share per layer (target = group of layers) and of the own target per bin (group
    "target"); projector_cosine and constant_share per bin; router_weight per layer."""
    shared = subject.columns("controls", options) | {"control": "none", "projector": "none"}
    rows: Rows = {"metrics": list(resume.rows("layers", partial(_layers, subject, options, shared))["metrics"])}
    if _target_of(subject):
        for index in tqdm(range(options.bins), desc="controls", unit="bin", leave=False):
            rows["metrics"] += resume.rows(f"bin{index}", partial(_target, subject, options, shared, index))["metrics"]
    rows["metrics"] += _router(subject, shared)
    return rows, {}
