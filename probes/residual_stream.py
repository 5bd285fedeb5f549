"""Who writes to the residual stream, and who is heard, by block and t (after DAR's Section 3, arXiv 2605.20708): plain SiTs and routed ones.

Per block k and bin of t, on held-out images; L is the velocity loss of a sample (mean over its latent), z_k what block k leaves:

    rms, gradient_rms        RMS(z_k), and RMS(dL/dz_k) of single samples, which no batch size changes (a batch mean's is B times smaller)
    gauge_free               RMS(z_k) RMS(dL/dz_k), which scaling the whole stream leaves as it is, unlike either of the two
    token_cosine             mean over tokens of cos(z_k, z_{k+1})
    attention_share, mlp_share   mean over tokens of ||v|| / ||h||: what a sublayer writes over what it reads
    gate_gradient            plain models: dL/dg of a gate g = 1 on what sublayer i writes, as sublayer l reads it ("local": through l alone)
    routing_weight           routed models: a_{i->l}, mean over tokens; routing_entropy: of these weights, in bits, over log2 of their number
    t_readability            held-out R^2 of t from the mean over tokens of z_k, by ridge regression over all bins; of group "embedding" from
                             that of v_0, which shows of t what the noisy latent does

Intervals are over images: Student's of a mean, of squares for an RMS; the jackknife of an R^2, for the reader as it was fitted. Groups are blocks;
for maps "attention 3", "mlp 3" or "final", and the target is the source: "embedding", "attention 1", "chunk 2".
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gsnr.intervals import jackknife_interval, student_interval
from gsnr.probes.common.options import BinOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.stream import Trace, traced
from gsnr.probes.common.subject import NOWHERE, Subject, bin_columns
from gsnr.table import NAN
from gsnr.train import interpolant
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.models.sit import SiT

SUMMARY = "what blocks write to the residual stream and what the loss hears of it: sizes, gradients, angles, gates, routing"
KIND = "metrics"
SCALES = ("bins", "n_images")
Options = BinOptions
PENALTIES = tuple(10.0**k for k in range(-4, 5))  # of the ridge, times the mean square of the features; the best on a third of the fitted images
Array = NDArray[np.float64]


def cannot(subject: Subject, options: Options) -> str | None:
    if subject.checkpoint.config.model.extra_token is not None:
        return f"{subject.checkpoint.folder}: has a class token, whose stream is not traced"
    if subject.checkpoint.config.model.text:
        return f"{subject.checkpoint.folder}: an MMDiT, whose two streams are not traced"
    return None


def plan(subject: Subject, options: Options) -> list[str]:
    return [f"{options.bins} bins x {options.n_images} held-out images: forward and backward, sublayer by sublayer"]


def names_of(sublayers: int) -> list[str]:
    """Of v_0 to v_L."""
    return ["embedding", *(f"{'attention' if i % 2 else 'mlp'} {(i + 1) // 2}" for i in range(1, sublayers + 1))]


def sources_of(model: SiT, number: int) -> list[str]:
    """What sublayer `number` reads (from 1; L + 1 is the final layer), in the order of a routed model's weights."""
    names, routing = names_of(2 * len(model.blocks)), model.routing
    if routing is None:
        return names[:number]
    done, inside = routing.sources(number)
    return [names[0], *(f"chunk {n}" for n in range(1, done + 1)), *names[number - inside : number]]


def of_trace(trace: Trace, loss_B: Tensor) -> dict[str, Tensor]:
    """name -> a number of each sample: (B, blocks) of squares and shares, (B, blocks - 1) of cosines; gates (B, L, L) with [l - 1, i], 0 for i >= l;
    pooled (B, 1 + blocks, D), of v_0 first."""
    grads = torch.autograd.grad(loss_B.sum(), [*trace.shifts, *trace.local])
    of_z, of_l = grads[: len(trace.shifts)], grads[len(trace.shifts) :]
    square = lambda xs: torch.stack([x.detach().double().square().mean((1, 2)) for x in xs], 1)
    cosines = [torch.cosine_similarity(a, b, dim=-1).mean(1) for a, b in zip(trace.left, trace.left[1:], strict=False)]
    shares = torch.stack([(v.norm(dim=-1) / h.norm(dim=-1)).mean(1) for v, h in zip(trace.written[1:], trace.read, strict=True)], 1)
    found = {"rms": square(trace.left), "gradient_rms": square(of_z), "attention_share": shares[:, ::2], "mlp_share": shares[:, 1::2]}
    found["token_cosine"] = torch.stack(cosines, 1) if cosines else shares[:, :0]
    if not trace.weights:
        gates = shares.new_zeros(len(loss_B), len(of_l), len(of_l))
        for number, g_BTD in enumerate(of_l):
            for i, v_BTD in enumerate(trace.written[: number + 1]):
                gates[:, number, i] = (v_BTD * g_BTD).sum((1, 2))
        found["gates"] = gates
    found["pooled"] = torch.stack([z.mean(1) for z in (trace.written[0], *trace.left)], 1)
    return {name: x.detach().double() for name, x in found.items()}


def _bin(subject: Subject, options: Options, place: int) -> dict[str, Tensor]:
    """name -> numbers of all images of a bin, float64."""
    low, high = options.edges(place)
    model = subject.checkpoint.model.eval()
    parts: list[dict[str, Tensor]] = []
    for _, drawn in heldout_batches(subject.splits["heldout"], options.n_images, options.seed, "heldout", low, high, (), first=options.first_image):
        batch = {key: x.to(subject.device) for key, x in drawn.items()}
        x_t = interpolant.interpolate(batch["latent"], batch["noise"], batch["t"])
        assert isinstance(model, SiT)
        trace = traced(model, x_t, batch["t"], batch["label"])
        loss_B = interpolant.velocity_loss(trace.velocity, interpolant.velocity(batch["latent"], batch["noise"]))
        found = of_trace(trace, loss_B) | {"t": batch["t"].double()}
        for number, a_BTn in enumerate(trace.weights):
            a = a_BTn.detach().double()
            found |= {f"weights {number}": a.mean(1), f"entropy {number}": -(a * a.clamp_min(1e-300).log2()).sum(-1).mean(1)}
        parts.append({name: x.cpu() for name, x in found.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def mean_of(values_N: Array, root: bool = False) -> dict[str, float]:
    """value, low, high: the mean with Student's interval over images; root: of its square root."""
    mean, se = float(values_N.mean()), float(values_N.std(ddof=1) / np.sqrt(len(values_N)))
    low, high = student_interval(mean, se, len(values_N), 0.95)
    found = {"value": mean, "low": low, "high": high}
    return {key: float(np.sqrt(max(0.0, x))) for key, x in found.items()} if root else found


def rows_of_bin(model: SiT, found: dict[str, Array]) -> list[dict[str, Any]]:
    """The rows of one bin, without what they share."""
    depth, rows = len(model.blocks), list[dict[str, Any]]()
    names = names_of(2 * depth)
    for k in range(depth):
        here = {"group": f"block {k + 1}", "target": "stream"}
        size, slope = (mean_of(found[name][:, k], root=True) for name in ("rms", "gradient_rms"))
        rows += [here | {"metric": "rms"} | size, here | {"metric": "gradient_rms"} | slope]
        rows.append(here | {"metric": "gauge_free", "value": size["value"] * slope["value"], "low": NAN, "high": NAN})
        rows += [here | {"metric": name} | mean_of(found[name][:, k]) for name in ("attention_share", "mlp_share")]
        rows += [here | {"metric": "token_cosine"} | mean_of(found["token_cosine"][:, k])] if k + 1 < depth else []
    if "gates" in found:
        for number in range(1, 2 * depth + 1):
            for i, source in enumerate(sources_of(model, number)):
                rows.append({"group": names[number], "target": source, "metric": "gate_gradient"} | mean_of(found["gates"][:, number - 1, i]))
        return rows
    for number in range(1, 2 * depth + 2):
        here, sources = {"group": names[number] if number <= 2 * depth else "final"}, sources_of(model, number)
        weights = found[f"weights {number - 1}"]
        rows += [here | {"target": source, "metric": "routing_weight"} | mean_of(weights[:, i]) for i, source in enumerate(sources)]
        if len(sources) > 1:
            share = found[f"entropy {number - 1}"] / np.log2(len(sources))
            rows.append(here | {"target": "stream", "metric": "routing_entropy"} | mean_of(share))
    return rows


def readability(pooled_ND: Array, t_N: Array, image_N: NDArray[np.int64]) -> dict[str, float]:
    """value, low, high: held-out R^2 of t. Images are fitted on, chosen by and judged by in thirds, none in two of them."""
    part_N = image_N % 3
    fit, choose, judge = (part_N == k for k in range(3))
    mean, t_mean = pooled_ND[fit].mean(0), t_N[fit].mean()
    x, y = pooled_ND - mean, t_N - t_mean
    axes, values, other = np.linalg.svd(x[fit], full_matrices=False)
    along = axes.T @ y[fit]
    scale = float((values**2).mean()) or 1.0
    squares = lambda w, which: (x[which] @ w - y[which]) ** 2
    weights = [other.T @ (values / (values**2 + penalty * scale) * along) for penalty in PENALTIES]
    best = min(weights, key=lambda w: float(squares(w, choose).mean()))
    of_image = lambda values: np.bincount(image_N[judge] // 3, values)
    missed, there = of_image(squares(best, judge)), of_image(y[judge] ** 2)
    value = 1 - float(missed.sum() / there.sum())
    if len(there) == 1:
        return {"value": value, "low": NAN, "high": NAN}
    low, high = jackknife_interval(value, 1 - (missed.sum() - missed) / (there.sum() - there), 0.95)
    return {"value": value, "low": low, "high": high}


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics"."""
    model, shared = subject.checkpoint.model, subject.columns("residual_stream", options) | {"control": "none", "projector": "none"}
    rows: Rows = {"metrics": []}
    pooled, times = [], []
    for place in tqdm(range(options.bins), desc="residual_stream", unit="bin", mininterval=0.5, leave=False):
        found = {name: x.numpy() for name, x in resume.tensors(f"bin{place}", partial(_bin, subject, options, place)).items()}
        pooled.append(found["pooled"])
        times.append(found["t"])
        here = shared | bin_columns(place, *options.edges(place))
        rows["metrics"] += [here | row for row in rows_of_bin(model, found)]
    pooled_XKD, t_X = np.concatenate(pooled), np.concatenate(times)
    image_X = np.tile(np.arange(options.n_images), options.bins)
    nowhere = shared | NOWHERE | {"bin": -1, "target": "stream", "metric": "t_readability"}
    for k, group in enumerate(["embedding", *(f"block {k + 1}" for k in range(len(model.blocks)))]):
        rows["metrics"].append(nowhere | {"group": group} | readability(pooled_XKD[:, k], t_X, image_X))
    return rows, {"images": options.n_images}
