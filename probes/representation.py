"""What hidden states know: CKNNA to an image teacher's features and the accuracy of a linear probe, per block and time (REPA's two probes).

Hidden states are averaged over tokens; the model is told no class (the null class), or the linear probe would read it off. CKNNA (Huh et
al. 2024) is a centred kernel alignment over pairs of mutual nearest neighbours, here with unit vectors, k = 10 and the unbiased estimator, as
REPA reports it; of unrelated features it is about k / N, which the shuffled control (the teacher's features of other images) shows. The
linear probe is a logistic regression on standardised hidden states of train images at the same t, scored on held-out images; its constant
control always guesses the class that is most frequent among them.
Shapes: N images, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gsnr.intervals import NORMAL_95, wilson
from gsnr.probes.common.kernels import hsic
from gsnr.probes.common.linear_probe import accuracies
from gsnr.probes.common.options import BinOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject, bin_columns
from gsnr.table import NAN
from gsnr.train.data.batches import Batch, assemble, draw
from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import partners
from gsnr.train.noising import noised

SUMMARY = "CKNNA to a teacher's features, and accuracy of a linear probe, per block and bin of t"
KIND = "metrics"
SCALES = ("bins",)  # the linear probes on train images take most of it
Options = BinOptions
NEIGHBOURS = 10
TEACHER = "teacher"
PROBE_TRAIN = 2048  # train images of the linear probe, at most
BATCH = 64
Array = NDArray[np.float64]


def cannot(subject: Subject, options: Options) -> str | None:
    if subject.header.num_classes == 1 and TEACHER not in subject.header.groups:
        return f"{subject.header.data}: holds neither classes nor a teacher's features, so there is nothing to tell apart"
    if options.n_images <= NEIGHBOURS + 4:
        return f"--n-images {options.n_images}: CKNNA with {NEIGHBOURS} neighbours needs more than {NEIGHBOURS + 4} images"
    return None


def plan(subject: Subject, options: Options) -> list[str]:
    depth = subject.checkpoint.config.model.depth
    teacher = "" if TEACHER in subject.header.groups else " (no CKNNA: the data hold no teacher's features)"
    fits = f"linear probes on {min(PROBE_TRAIN, subject.splits['train'].size)} train images"
    linear = fits if subject.header.num_classes > 1 else "no linear probe: the data have no classes"
    return [f"{options.bins} bins x {depth} blocks x {options.n_images} held-out images; {linear}{teacher}"]


def _neighbours(kernel_NN: Array, k: int) -> Array:
    """(N,N) 0/1: j is one of the k nearest to i, i itself left out."""
    others = kernel_NN.copy()
    np.fill_diagonal(others, -np.inf)
    mask = np.zeros_like(kernel_NN)
    np.put_along_axis(mask, np.argpartition(-others, k - 1, axis=1)[:, :k], 1.0, axis=1)
    return mask


def _kernel(x_ND: Array) -> Array:
    """(N,N): cosines."""
    unit = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    return unit @ unit.T


def cknna(a_ND: Array, b_NE: Array, k: int = NEIGHBOURS) -> float:
    """Centred kernel nearest-neighbour alignment of two sets of features of the same images (Huh et al. 2024, App. A); NaN where undefined."""
    return _cknna(_kernel(a_ND), _kernel(b_NE), k)


def _cknna(a_NN: Array, b_NN: Array, k: int = NEIGHBOURS) -> float:
    """Of two kernels."""
    kernels = [a_NN, b_NN]
    near = [_neighbours(kernel, k) for kernel in kernels]

    def similarity(i: int, j: int) -> float:
        both = near[i] * near[j]
        return hsic(both * kernels[i], both * kernels[j])

    product = similarity(0, 0) * similarity(1, 1)
    return similarity(0, 1) / np.sqrt(product) if product > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Images with the random numbers that every bin shares: read and drawn once."""

    split: Split
    numbers: NDArray[np.int64]
    seed: int
    stream: str
    groups: tuple[str, ...] = ()

    @cached_property
    def batches(self) -> list[tuple[Batch, Array]]:
        """(batch without its times, u)."""
        found = []
        for chunk in np.array_split(self.numbers, -(-len(self.numbers) // BATCH)):
            drawn = draw(self.split, self.seed, self.stream, chunk, self.groups)
            batch = assemble(self.split, chunk, drawn, drawn.u, self.groups, mirror=False)
            found.append(({key: x for key, x in batch.items() if key not in ("t", "offset_u")}, drawn.u))
        return found

    def between(self, low: float, high: float) -> Iterable[Batch]:
        """The batches, at times of one bin."""
        return (batch | {"t": torch.from_numpy((low + (high - low) * u_N).astype(np.float32))} for batch, u_N in self.batches)

    @cached_property
    def labels_N(self) -> Tensor:
        return torch.cat([batch["label"] for batch, _ in self.batches])

    @cached_property
    def teacher_ND(self) -> Array:
        """Its features, averaged over places."""
        return np.concatenate([batch[TEACHER][:, 0].double().mean((2, 3)).numpy() for batch, _ in self.batches])


@torch.inference_mode()
def _hidden(subject: Subject, batch: Batch) -> Tensor:
    """(K,N,D) hidden states of all K blocks, averaged over tokens."""
    model = subject.checkpoint.model
    batch = {key: x.to(subject.device, non_blocking=True) for key, x in batch.items() if key != TEACHER}
    blocks = tuple(range(1, subject.checkpoint.config.model.depth + 1))
    nothing = model.null(model.condition(batch))
    x_t, extra = noised(model, batch)
    _, hidden = model.forward_with_taps(x_t, batch["t"], nothing, taps=blocks, stop=True, extra=extra)
    return torch.stack([hidden[block].mean(1) for block in blocks])


def _features(subject: Subject, images: _Images, low: float, high: float) -> Tensor:
    """(K,N,D) float64, on the device."""
    return torch.cat([_hidden(subject, batch) for batch in images.between(low, high)], dim=1).double().clone()


def _jackknife(a_NN: Array, b_NN: Array, value: float) -> tuple[float, float]:
    """95 % interval of CKNNA from leaving out one of 16 parts of the images at a time."""
    n = len(a_NN)
    folds = np.array_split(np.arange(n), min(16, n - NEIGHBOURS - 3))
    rest = [np.delete(np.arange(n), fold) for fold in folds]
    left_out = np.array([_cknna(a_NN[np.ix_(kept, kept)], b_NN[np.ix_(kept, kept)]) for kept in rest])
    half = NORMAL_95 * float(np.sqrt((len(folds) - 1) * np.var(left_out)))
    return value - half, value + half


def _images(subject: Subject, options: Options) -> tuple[_Images, _Images]:
    """Train images of the linear probe, and held-out ones."""
    split, reads = subject.splits["train"], subject.checkpoint.config.model.reads
    groups = (*(group for group in (TEACHER,) if group in subject.header.groups), *reads)
    numbers = np.arange(min(PROBE_TRAIN, split.size), dtype=np.int64)
    train = _Images(split=split, numbers=numbers, seed=options.seed, stream="fit", groups=reads)
    return train, _Images(split=subject.splits["heldout"], numbers=subject.images(options), seed=options.seed, stream="heldout", groups=groups)


def _bin(subject: Subject, options: Options, train: _Images, heldout: _Images, index: int) -> Rows:
    low, high = options.edges(index)
    held_KND = _features(subject, heldout, low, high)
    shared = subject.columns("representation", options) | {"control": "none", "projector": "none"} | bin_columns(index, low, high)
    about = [shared | {"group": f"block {block}"} for block in range(1, len(held_KND) + 1)]
    rows: list[list[dict[str, Any]]] = [[] for _ in about]
    classes, counts = torch.unique(train.labels_N, return_counts=True)
    if len(classes) > 1:
        device = held_KND.device
        found = accuracies(_features(subject, train, low, high), train.labels_N.to(device), held_KND, heldout.labels_N.to(device))
        guess = float((heldout.labels_N == classes[counts.argmax()]).double().mean())
        for of_block, here, accuracy in zip(rows, about, found, strict=True):
            ends = wilson(accuracy, held_KND.shape[1])
            of_block.append(here | {"target": "label", "metric": "linear_probe_accuracy", "value": accuracy, "low": ends[0], "high": ends[1]})
            of_block.append(of_block[-1] | {"control": "constant", "value": guess, "low": NAN, "high": NAN})
    if TEACHER in heldout.groups:
        teacher = _kernel(heldout.teacher_ND)
        other = partners(len(teacher), options.seed)
        for of_block, here, h_ND in zip(rows, about, held_KND.cpu().numpy(), strict=True):
            kernel = _kernel(h_ND)
            value = _cknna(kernel, teacher)
            ends = _jackknife(kernel, teacher, value)
            of_block.append(here | {"target": TEACHER, "metric": "cknna", "value": value, "low": ends[0], "high": ends[1]})
            chance = here | {"target": TEACHER, "control": "shuffled", "metric": "cknna", "low": NAN, "high": NAN}
            of_block.append(chance | {"value": _cknna(kernel, teacher[np.ix_(other, other)])})
    return {"metrics": [row for of_block in rows for row in of_block]}


def run(subject: Subject, options: Options, resume: ResumeCache, sums: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Rows of kind "metrics": linear_probe_accuracy (target "label"; control "constant") and cknna (target "teacher"; control "shuffled"), group =
    block."""
    rows: Rows = {"metrics": []}
    train, heldout = _images(subject, options)
    for index in tqdm(range(options.bins), desc="representation", unit="bin", leave=False):
        rows["metrics"] += resume.rows(f"bin{index}", partial(_bin, subject, options, train, heldout, index))["metrics"]
    return rows, {"neighbours": NEIGHBOURS, "probe_train": min(PROBE_TRAIN, subject.splits["train"].size)}
