"""What hidden states know: CKNNA to an image teacher's features and the accuracy of a linear probe, per block and time (REPA's two probes).

Hidden states are averaged over tokens; the model is told no class (the null class), or the linear probe would read it off. CKNNA (Huh et
al. 2024) is a centred kernel alignment over pairs of mutual nearest neighbours, here with unit vectors, k = 10 and the unbiased estimator, as
REPA reports it; of unrelated features it is about k / N, which the shuffled control (the teacher's features of other images) shows. The
linear probe is a logistic regression on standardised hidden states of train images at the same t, scored on held-out images; its constant
control always guesses the class that is most frequent among them.
Shapes: N images, D features.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from gsnr.intervals import NORMAL_95
from gsnr.probes.common.options import BinOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns
from gsnr.table import NAN
from gsnr.train.data import rng
from gsnr.train.data.batches import assemble
from gsnr.train.data.heldout import heldout_batches, partners
from gsnr.train.interpolant import interpolate

SUMMARY = "CKNNA to a teacher's features, and accuracy of a linear probe, per block and bin of t"
KIND = "metrics"
SCALES = ("bins",)  # the linear probes on train images take most of it
Options = BinOptions
NEIGHBOURS = 10
TEACHER = "teacher"
PROBE_TRAIN = 2048  # train images of the linear probe, at most
Array = NDArray[np.float64]


def cannot(subject: Subject, options: Options) -> str | None:
    if options.n_images <= NEIGHBOURS + 3:
        return f"--n-images {options.n_images}: CKNNA with {NEIGHBOURS} neighbours needs more than {NEIGHBOURS + 3} images"
    return None


def plan(subject: Subject, options: Options) -> list[str]:
    depth = subject.checkpoint.config.model.depth
    teacher = "" if TEACHER in subject.header.groups else " (no CKNNA: the data hold no teacher's features)"
    fits = f"{min(PROBE_TRAIN, subject.splits['train'].size)} train images"
    return [f"{options.bins} bins x {depth} blocks x {options.n_images} held-out images; linear probes on {fits}{teacher}"]


def _neighbours(kernel_NN: Array, k: int) -> Array:
    """(N,N) 0/1: j is one of the k nearest to i, i itself left out."""
    others = kernel_NN.copy()
    np.fill_diagonal(others, -np.inf)
    mask = np.zeros_like(kernel_NN)
    np.put_along_axis(mask, np.argpartition(-others, k - 1, axis=1)[:, :k], 1.0, axis=1)
    return mask


def _hsic(k_NN: Array, l_NN: Array) -> float:
    """Unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012, Eq. 5)."""
    n = len(k_NN)
    k, m = k_NN.copy(), l_NN.copy()
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(m, 0.0)
    trace = float((k * m.T).sum())
    sums = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * float(k.sum(0) @ m.sum(1))
    return (trace + sums - cross) / (n * (n - 3))


def cknna(a_ND: Array, b_NE: Array, k: int = NEIGHBOURS) -> float:
    """Centred kernel nearest-neighbour alignment of two sets of features of the same images (Huh et al. 2024, App. A); NaN where undefined."""
    kernels = []
    for x in (a_ND, b_NE):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernels.append(unit @ unit.T)
    near = [_neighbours(kernel, k) for kernel in kernels]

    def similarity(i: int, j: int) -> float:
        both = near[i] * near[j]
        return _hsic(both * kernels[i], both * kernels[j])

    product = similarity(0, 0) * similarity(1, 1)
    return similarity(0, 1) / np.sqrt(product) if product > 0 else float("nan")


@torch.no_grad()
def _hidden(subject: Subject, batch: dict[str, torch.Tensor]) -> dict[int, Array]:
    """block -> (N,D) hidden states, averaged over tokens."""
    model = subject.checkpoint.model.to(subject.device)
    batch = {key: x.to(subject.device) for key, x in batch.items()}
    x_t = interpolate(batch["latent"], batch["noise"], batch["t"])
    blocks = tuple(range(1, subject.checkpoint.config.model.depth + 1))
    nothing = torch.full_like(batch["label"], subject.checkpoint.config.model.num_classes)
    _, hidden = model.forward_with_taps(x_t, batch["t"], nothing, taps=blocks, stop=True)
    return {block: h.mean(1).double().cpu().numpy() for block, h in hidden.items()}


def _gather(parts: list[dict[int, Array]]) -> dict[int, Array]:
    return {block: np.concatenate([part[block] for part in parts]) for block in parts[0]}


def _accuracy(train_ND: Array, train_N: NDArray, held_ND: Array, held_N: NDArray) -> float:
    """Share of held-out images that the probe puts into their class."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, C=0.1))
    return float(probe.fit(train_ND, train_N).score(held_ND, held_N))


def _wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927). It holds the proportion, whose rounding at 0 and 1 may be another."""
    z = NORMAL_95
    middle, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, (middle - half) / (1 + z * z / n)), max(share, (middle + half) / (1 + z * z / n))


def _jackknife(a_ND: Array, b_NE: Array, value: float) -> tuple[float, float]:
    """95 % interval from leaving out one of 16 parts of the images at a time."""
    folds = np.array_split(np.arange(len(a_ND)), min(16, len(a_ND) - NEIGHBOURS - 3))
    left_out = np.array([cknna(np.delete(a_ND, fold, 0), np.delete(b_NE, fold, 0)) for fold in folds])
    half = NORMAL_95 * float(np.sqrt((len(folds) - 1) * np.var(left_out)))
    return value - half, value + half


def _bin(subject: Subject, options: Options, index: int) -> Rows:
    low, high = options.edges(index)
    groups = tuple(group for group in (TEACHER,) if group in subject.header.groups)
    heldout = subject.splits["heldout"]
    batches = heldout_batches(heldout, options.n_images, options.seed, "heldout", low, high, groups, first=options.first_image)
    drawn = [batch for _, batch in batches]
    held = _gather([_hidden(subject, batch) for batch in drawn])
    held_labels = np.concatenate([batch["label"].numpy() for batch in drawn])
    split = subject.splits["train"]
    numbers = np.arange(min(PROBE_TRAIN, split.size), dtype=np.int64)
    fits, fit_labels = [], []
    for chunk in np.array_split(numbers, -(-len(numbers) // 64)):
        noise = rng.draw(options.seed, "fit", chunk, subject.header.latent_shape)
        batch = assemble(split, chunk, noise, low + (high - low) * noise.u, (), mirror=False)
        fits.append(_hidden(subject, batch))
        fit_labels.append(batch["label"].numpy())
    train, train_labels = _gather(fits), np.concatenate(fit_labels)
    shared = subject.columns("representation", options) | {"control": "none", "projector": "none"} | bin_columns(index, low, high)
    rows = []
    for block, h_ND in held.items():
        here = shared | {"group": f"block {block}"}
        if len(np.unique(train_labels)) > 1:
            accuracy = _accuracy(train[block], train_labels, h_ND, held_labels)
            ends = _wilson(accuracy, len(h_ND))
            rows.append(here | {"target": "label", "metric": "linear_probe_accuracy", "value": accuracy, "low": ends[0], "high": ends[1]})
            classes, counts = np.unique(train_labels, return_counts=True)
            guess = float((held_labels == classes[counts.argmax()]).mean())
            rows.append(rows[-1] | {"control": "constant", "value": guess, "low": NAN, "high": NAN})
        if groups:
            teacher = np.concatenate([batch[TEACHER][:, 0].double().mean((2, 3)).numpy() for batch in drawn])
            value = cknna(h_ND, teacher)
            ends = _jackknife(h_ND, teacher, value)
            rows.append(here | {"target": TEACHER, "metric": "cknna", "value": value, "low": ends[0], "high": ends[1]})
            other = teacher[partners(len(teacher), options.seed)]
            chance = here | {"target": TEACHER, "control": "shuffled", "metric": "cknna", "low": NAN, "high": NAN}
            rows.append(chance | {"value": cknna(h_ND, other)})
    return {"metrics": rows}


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics": linear_probe_accuracy (target "label"; control "constant") and cknna (target "teacher"; control "shuffled"), group =
    block."""
    rows: Rows = {"metrics": []}
    for index in tqdm(range(options.bins), desc="representation", unit="bin", leave=False):
        rows["metrics"] += resume.rows(f"bin{index}", partial(_bin, subject, options, index))["metrics"]
    return rows, {"neighbours": NEIGHBOURS, "probe_train": min(PROBE_TRAIN, subject.splits["train"].size)}
