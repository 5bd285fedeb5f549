"""What a linear reader makes of hidden states: R^2 and cosine of ridge regressions per layer, block and bin of t, on any backbone; and what a
router that is trained with a cosine loss would choose by them.

Read are every layer of the cached features, as the checkpoint's own target normalises them, an image teacher's features where the data hold them,
and the clean latent, patchified. A reader sees one token's hidden state, no neighbours. It is fitted to train images, each once in every
bin, its penalty chosen on an eighth of them, and measured on held-out images. The model is told the class, as in training.
Shapes: N images, B samples, T tokens, D width, C channels, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gsnr.options import option
from gsnr.probes.common.options import NONE, SHUFFLED, BinOptions
from gsnr.probes.common.readings import Joined, Readings
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.ridge import CHOOSES, SOLVES, Outputs, Reader, Ridge
from gsnr.probes.common.streaming import OWN, streamed
from gsnr.probes.common.subject import Subject, bin_columns
from gsnr.probes.common.targets import own_target
from gsnr.probes.common.vertex import MOST_LAYERS, Moments, choice, interval
from gsnr.table import NAN
from gsnr.train.alignments import TargetAlignment
from gsnr.train.data import permutation
from gsnr.train.data.batches import Batch, assemble, draw
from gsnr.train.data.heldout import heldout_batches, partners
from gsnr.train.noising import noised
from gsnr.train.priors.layers import CACHED, DEEP, MID

SUMMARY = "how well a linear reader of hidden states predicts each layer, per block and bin of t; what a router would choose by it"
KIND = "metrics"
SCALES = ("bins", "train_images")  # the fits to train images take most of it
LATENT, BETA = "latent", "beta"
BATCH = 64
AT_ONCE = {"cpu": 2**20, "cuda": 2**28}  # numbers of what is read that are held beside several of their kind: a cache, a share of memory
CHOOSING = 8  # one in so many train images chooses the penalties
Pairs = Iterator[tuple[Batch, Batch]]
Layer = tuple[str, str]  # group of cached features, name
Parts = dict[str, list[Layer]]
Index = NDArray[np.int64]
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Options(BinOptions):
    train_images: int = option(512, "train images that readers are fitted to, each once a bin (all if there are fewer)", low=2 * CHOOSING, high=2**20)


def cannot(subject: Subject, options: Options) -> str | None:
    images = subject.splits["train"].size
    return None if images >= 2 * CHOOSING else f"{subject.header.data!r} has {images} train images; readers are fitted to {2 * CHOOSING} or more"


def plan(subject: Subject, options: Options) -> list[str]:
    things, depth = 1 + len(_layers(subject)), subject.checkpoint.config.model.depth
    fits = min(options.train_images, subject.splits["train"].size)
    return [f"{options.bins} bins x {depth} blocks x {things} things to read, and their controls, on {options.n_images} images; fits on {fits}"]


def _layers(subject: Subject) -> list[Layer]:
    """Every layer of the cached features, shallow first."""
    header = subject.header
    return [(group, name) for group, shape in header.maps.items() for name in header.layers[group] or map(str, range(shape[0]))]


def _groups(subject: Subject) -> tuple[str, ...]:
    """What is read of the cache: the features that lie on the token grid, and what the model reads."""
    return (*subject.header.maps, *subject.checkpoint.config.model.reads)


def _called(layer: Layer) -> str:
    """The column `target` of a layer."""
    return "/".join(layer)


OTHER = "other"  # the name of the shuffled control's batch


@dataclass(frozen=True, kw_only=True)
class _Train:
    """`self[step]`: a batch of train images in random order, and others at the same times."""

    subject: Subject
    chunks: list[Index]
    partner_N: Index
    seed: int
    low: float
    high: float

    def __getitem__(self, step: int) -> dict[str, Batch]:
        split, groups, index = self.subject.splits["train"], _groups(self.subject), self.chunks[step]
        drawn = draw(split, self.seed, "fit", index, groups)
        t_N, other = self.low + (self.high - self.low) * drawn.u, self.partner_N[index]
        others = draw(split, self.seed, "fit", other, groups)
        return {OWN: assemble(split, index, drawn, t_N, groups, mirror=False), OTHER: assemble(split, other, others, t_N, groups, mirror=False)}


def _train(subject: Subject, options: Options, low: float, high: float, part: int) -> Pairs:
    """Batches of train images in random order, and others for the shuffled control, on the device."""
    size = subject.splits["train"].size
    numbers = permutation.image_of(np.arange(min(options.train_images, size), dtype=np.int64), size, options.seed)
    chosen = len(numbers) // CHOOSING
    numbers = numbers[:chosen] if part == CHOOSES else numbers[chosen:]
    chunks = np.array_split(numbers, -(-len(numbers) // BATCH))
    steps = _Train(subject=subject, chunks=chunks, partner_N=partners(size, options.seed), seed=options.seed, low=low, high=high)
    return ((pair[OWN], pair[OTHER]) for pair in streamed(steps, 0, len(chunks), subject.device))


def _heldout(subject: Subject, options: Options, low: float, high: float) -> Pairs:
    split, groups = subject.splits["heldout"], _groups(subject)
    own, other = (
        heldout_batches(split, options.n_images, options.seed, "heldout", low, high, groups, partner_N=partner_N, first=options.first_image)
        for partner_N in (None, partners(split.size, options.seed))
    )
    return ((batch, another) for (_, batch), (_, another) in zip(own, other, strict=True))


def _hidden(subject: Subject, batch: Batch) -> dict[int, Tensor]:
    """block -> (B,T,D)."""
    model = subject.checkpoint.model
    batch = {key: x.to(subject.device) for key, x in batch.items()}
    blocks = tuple(range(1, subject.checkpoint.config.model.depth + 1))
    x_t, extra = noised(model, batch)
    hidden = model.forward_with_taps(x_t, batch["t"], model.condition(batch), taps=blocks, stop=True, extra=extra)[1]
    return {block: hidden[block] for block in blocks}


def things(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    """What is read, as column `target` calls it -> (B,T,C) float32."""
    own = own_target(subject)
    alignment = own[1].to(subject.device) if own is not None and isinstance(own[1], TargetAlignment) else None
    found: dict[str, Tensor] = {}
    for group in subject.header.maps:
        f_BLCgg = batch[group].to(subject.device).float()
        if alignment is not None and group in alignment.needs:
            f_BLCgg = alignment.normalised(group, f_BLCgg)
        names = [layer for layer in _layers(subject) if layer[0] == group]
        found |= {_called(layer): f_BLCgg[:, i].flatten(-2).mT for i, layer in enumerate(names)}
    patch = subject.checkpoint.config.model.patch_size
    return found | {LATENT: F.unfold(batch["latent"].to(subject.device).float(), patch, stride=patch).mT}


def _with_control(subject: Subject, batch: Batch, other: Batch) -> dict[str, Tensor]:
    """ "target control" -> (B,T,C)."""
    both = {NONE: things(subject, batch), SHUFFLED: things(subject, other)}
    return {f"{name} {control}": y_BTC for control, each in both.items() for name, y_BTC in each.items()}


def _fit(subject: Subject, options: Options, low: float, high: float) -> tuple[dict[int, dict[str, Reader]], dict[str, Tensor]]:
    """block -> its readers by "target control", and (T,C) means of what they read."""
    outputs: Outputs | None = None
    ridges: dict[int, Ridge] = {}
    total_TP: Tensor | float = 0.0
    images = 0
    for part in (SOLVES, CHOOSES):
        for pair in _train(subject, options, low, high, part):
            y = _with_control(subject, *pair)
            outputs = outputs or Outputs({key: y_BTC.shape[-1] for key, y_BTC in y.items()})
            y_BTP = torch.cat(list(y.values()), dim=-1)
            total_TP = y_BTP.sum(0).double() + total_TP
            images += len(y_BTP)
            given = outputs.add(y_BTP.flatten(0, 1), part)  # once for all blocks
            for block, h_BTD in _hidden(subject, pair[0]).items():
                ridges.setdefault(block, Ridge(outputs)).add(h_BTD.flatten(0, 1), given)
    assert outputs is not None and isinstance(total_TP, Tensor)
    means = dict(zip(outputs.sizes, (total_TP / images).split(list(outputs.sizes.values()), dim=1), strict=True))
    return {block: ridge.solve() for block, ridge in ridges.items()}, means


@torch.no_grad()
def _measure(subject: Subject, options: Options, parts: Parts, low: float, high: float) -> tuple[Readings, dict[str, Moments]]:
    """Readers of one bin on held-out images, and moments at the tap of each part of a mixture."""
    readers, means = _fit(subject, options, low, high)
    joined = {block: Joined(of_block) for block, of_block in readers.items()}
    readings, moments = Readings(means), {part: Moments() for part in parts}
    for pair in _heldout(subject, options, low, high):
        y = _with_control(subject, *pair)
        y_BTP = torch.cat(list(y.values()), dim=-1)
        hidden = _hidden(subject, pair[0])
        for some in torch.arange(len(y_BTP)).split(max(1, AT_ONCE[y_BTP.device.type] // y_BTP[0].numel())):
            images = slice(int(some[0]), int(some[-1]) + 1)
            readings.begin(y_BTP[images])
            for block, h_BTD in hidden.items():
                read_BTP = joined[block](h_BTD[images])
                readings.add(block, read_BTP)
                if block == subject.tap:
                    found = dict(zip(y, read_BTP.split(readings.sizes, dim=-1), strict=True))
                    for part, layers in parts.items():
                        keys = [f"{_called(layer)} {NONE}" for layer in layers]
                        moments[part].add(torch.stack([found[key] for key in keys]), torch.stack([y[key][images] for key in keys]))
    return readings, moments


def _router(subject: Subject, times: tuple[float, ...]) -> dict[str, Tensor]:
    """part, or "beta" -> (times, K) weights of what the checkpoint was aligned to; {} where nothing is learned over t alone."""
    own = own_target(subject)
    return {} if own is None else {part: w_BK.cpu() for part, w_BK in own[1].cpu().router_weights(torch.tensor(times)).items()}


def _parts(subject: Subject, router: dict[str, Tensor]) -> Parts:
    """part of a mixture -> its layers: the router's parts, or else mid and deep where the data hold them. Layers that a split moved between mid and
    deep are where it put them."""
    cached = {group: [layer for layer in _layers(subject) if layer[0] == group] for group in subject.header.maps}
    both = [layer for part in (MID, DEEP) for layer in cached.get(CACHED[part], [])]
    sizes = {part: w_BK.shape[1] for part, w_BK in router.items()}
    mid = sizes.get(MID, len(both) - sizes[DEEP] if DEEP in sizes else len(cached.get(CACHED[MID], [])))
    named = cached | {MID: both[:mid], DEEP: both[mid:]}
    return {part: named[part] for part in sizes or (MID, DEEP) if part != BETA and named[part]}


def _rule(moments: dict[str, Moments], parts: Parts) -> list[dict[str, Any]]:
    """What the vertex rule chooses, and the optimum over the simplex, as columns target (alpha_PART or beta), group, metric, value, low, high."""
    rows, best = [], {}
    for part, layers in parts.items():
        share_L, left_NL = moments[part].shares()
        best[part] = share_L.max(), left_NL[:, share_L.argmax()]
        names = [name for _, name in layers]
        rows += _choice(f"alpha_{part}", names, share_L, left_NL)
        if len(names) <= MOST_LAYERS:
            w_L, share = moments[part].optimum()
            rows += _point(f"alpha_{part}", "optimal_weight", zip(names, w_L.tolist(), strict=True))
            rows += _point(f"alpha_{part}", "optimal_share", [("all", share)])
    if parts:
        shares, left = zip(*best.values(), strict=True)
        rows += _choice(BETA, list(parts), np.array(shares), np.stack(left, axis=1))
    return rows


def _choice(target: str, names: list[str], share_K: Array, left_NK: Array) -> list[dict[str, Any]]:
    metrics = {
        "readable_share": [interval(share_K[k], left_NK[:, k]) for k in range(len(names))],
        "predicted_weight": choice(share_K, left_NK),
    }
    return [
        {"target": target, "group": name, "metric": metric, "value": value, "low": low, "high": high}
        for metric, found in metrics.items()
        for name, (value, low, high) in zip(names, found, strict=True)
    ]


def _point(target: str, metric: str, values: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """Without an interval."""
    return [{"target": target, "group": name, "metric": metric, "value": value, "low": NAN, "high": NAN} for name, value in values]


@torch.no_grad()
def _bin(subject: Subject, options: Options, index: int) -> Rows:
    low, high = options.edges(index)
    router = _router(subject, ((low + high) / 2,))
    parts = _parts(subject, router)
    readings, moments = _measure(subject, options, parts, low, high)
    here = subject.columns("readability", options) | bin_columns(index, low, high) | {"control": NONE, "projector": "ridge"}
    rows = [here | {"target": "tap", "group": f"block {subject.tap}", "metric": "tap", "value": float(subject.tap), "low": NAN, "high": NAN}]
    for block in readings.cosine_BK:
        for key, measures in readings.measures(block).items():
            target, _, control = key.rpartition(" ")
            about = here | {"target": target, "control": control, "group": f"block {block}"}
            rows += [about | {"metric": metric, "value": v, "low": a, "high": b} for metric, (v, a, b) in measures.items()]
    for key, (value, a, b) in readings.constant_cosine().items():
        target, _, control = key.rpartition(" ")
        if control == NONE:
            rows.append(here | {"target": target, "group": "target", "metric": "constant_cosine", "value": value, "low": a, "high": b})
    rows += [here | row for row in _rule(moments, parts)]
    for part, w_BK in router.items():
        target, names = (BETA, list(parts)) if part == BETA else (f"alpha_{part}", [name for _, name in parts[part]])
        trained = _point(target, "router_weight", zip(names, w_BK[0].tolist(), strict=True))
        rows += [here | row | {"projector": "ckpt"} for row in trained]
    return {"metrics": rows}


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics". readable_r2, readable_cosine: target = GROUP/LAYER or "latent", group = block, control none or shuffled;
    constant_cosine: group "target"; tap: the block of the rest. Target alpha_PART or beta, group = layer or part: readable_share,
    predicted_weight, optimal_weight, router_weight; optimal_share of group "all"."""
    rows: Rows = {"metrics": []}
    for index in tqdm(range(options.bins), desc="readability", unit="bin", leave=False):
        rows["metrics"] += resume.rows(f"bin{index}", partial(_bin, subject, options, index))["metrics"]
    return rows, {"tap": subject.tap, "train_images": min(options.train_images, subject.splits["train"].size)}
