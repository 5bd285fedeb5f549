"""The one procedure by which projectors are fitted to their targets, on frozen hidden states of the train split.

* A projector that is one affine layer on each token or on its neighbours (linear, conv1x1, conv3x3) is solved by ridge regression in closed form.
  Under a loss that is the mean cosine the regression is on unit targets: what maximises it is the direction of E[f/||f|| | h]. Under any other
  loss (L1, smooth L1: a median, not a mean; RARE's, which weights tokens) that is where its descent begins.
* Any other descends its own loss by AdamW, from the mean target (its last layer: weight 0, bias at the mean), until a held-out part of the train
  split no longer gains, three rates in turn; at most `fit_steps` steps, and the notes say so where it was stopped by them.

An eighth of the train images (by `order`) chooses the penalty, and says when to stop. Every candidate sees the same images, times and noise.
Shapes: B samples, T tokens, D width, C target channels, P inputs of an affine layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from gsnr.probes.common.candidates import Candidate, groups_of, hidden_at_tap, partners_of, prepared
from gsnr.probes.common.descent import Descent, Keeper, Step, descend, judged
from gsnr.probes.common.options import NONE, TargetOptions
from gsnr.probes.common.ridge import CHOOSES, SOLVES, Outputs, Reader, Ridge
from gsnr.probes.common.streaming import OWN
from gsnr.probes.common.subject import Subject
from gsnr.train.data import permutation
from gsnr.train.data.batches import Batch, assemble, draw
from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import REPEAT, order

FIT_BATCH = 64
JUDGE = 8  # batches of the held-out part that losses are judged on
MEAN = 16  # batches that a target's mean is taken over
HELDOUT_SAMPLES = 1 << 38  # sample numbers of the held-out part begin here
RIDGE, DESCENT = "ridge", "descent"


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """How a projector was fitted. loss: on the part of the train split that chose the penalty (and was then solved from, too) or the end of the
    descent; constant_loss: there, of the mean target; steps: of descent, or samples of ridge; penalty: of ridge; converged: False where
    `fit_steps` ended the descent."""

    how: str
    steps: int
    loss: float
    constant_loss: float
    penalty: float
    converged: bool


def images_of(subject: Subject, part: int) -> NDArray[np.int64]:
    """Train images that projectors are solved from, or those an eighth as many that judge them."""
    numbers = order(subject.splits["train"].size)
    eighth = max(1, len(numbers) // 8)
    return numbers[:eighth] if part == CHOOSES else numbers[eighth:]


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """`self[step]`: OWN -> a batch, control -> other images with other noise at the same times. A pure function of (seed, part, step)."""

    split: Split
    images: NDArray[np.int64]
    partners: dict[str, NDArray[np.int64]]
    groups: tuple[str, ...]
    seed: int
    part: int

    def __getitem__(self, step: int) -> dict[str, Batch]:
        samples = np.arange(step * FIT_BATCH, (step + 1) * FIT_BATCH, dtype=np.int64)
        index = self.images[permutation.image_of(samples, len(self.images), self.seed)]
        numbers = samples + (HELDOUT_SAMPLES if self.part == CHOOSES else 0)
        drawn = draw(self.split, self.seed, "fit", numbers, self.groups)
        found = {OWN: assemble(self.split, index, drawn, drawn.u, self.groups)}
        if self.partners:
            others = draw(self.split, self.seed, "fit", numbers + REPEAT, self.groups)  # another noise as well
            found |= {control: assemble(self.split, of[index], others, drawn.u, self.groups) for control, of in self.partners.items()}
        return found


def fit_batches(subject: Subject, seed: int, made: list[Candidate], steps: int, part: int = SOLVES, first: int = 0) -> Iterator[Step]:
    """What projectors are fitted on: steps first .. steps - 1, each a pure function of (seed, part, step)."""
    split = subject.splits["train"]
    samples = _Samples(
        split=split,
        images=images_of(subject, part),
        partners=partners_of(split, seed, made),
        groups=groups_of(subject, made),
        seed=seed,
        part=part,
    )
    for batch, others in prepared(subject, made, samples, first, steps):
        yield batch, others, hidden_at_tap(subject, batch)


def directional(candidate: Candidate, target_BTC: Tensor) -> bool:
    """Whether its loss is a constant less a multiple of the mean cosine to each token's target: then the direction of E[f/||f|| | h] is the best. One
    that weights tokens by their own error (RARE's), or is a mean of several cosines a token, is not."""
    assert candidate.aligned is not None
    a, b = target_BTC.flip(1) + target_BTC.roll(1, -1), target_BTC.roll(1, 1)
    projections, factor = (a, b, a + 2 * b), 1 + torch.arange(target_BTC.shape[1], device=target_BTC.device).view(1, -1, 1)
    one, two, three = (candidate.aligned.discrepancy(x, target_BTC) for x in projections)
    c1, c2, c3 = (F.cosine_similarity(x, target_BTC, dim=-1).mean(1) for x in projections)
    scaled = candidate.aligned.discrepancy(a, target_BTC * factor)
    pairs = (((one - two) * (c1 - c3), (one - three) * (c1 - c2)), (one, scaled))
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in pairs)


class _Aims:
    """What candidates' projectors are regressed on: (B,T,C) targets, or their directions where the loss reads no more of them."""

    def __init__(self) -> None:
        self.directional: dict[str, bool] = {}

    def __call__(self, candidate: Candidate, step: Step) -> Tensor:
        target_BTC = candidate.target_BTC(*step).float()
        if candidate.name not in self.directional:  # asked once: the answer is a property of the loss
            self.directional[candidate.name] = directional(candidate, target_BTC[:1])
        return F.normalize(target_BTC, dim=-1) if self.directional[candidate.name] else target_BTC


def affine_layer(projector: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """The only layer of a projector that is one affine map of a token, or of its neighbours on the grid."""
    own = [m for m in projector.modules() if next(m.parameters(recurse=False), None) is not None]
    if len(own) != 1 or not isinstance(own[0], nn.Linear | nn.Conv2d) or own[0].bias is None:
        return None
    layer = own[0]
    if isinstance(layer, nn.Conv2d):
        k = layer.kernel_size[0]
        plain = layer.kernel_size == (k, k) and k % 2 and layer.padding == (k // 2, k // 2) and layer.padding_mode == "zeros"
        return layer if plain and layer.stride == layer.dilation == (1, 1) and layer.groups == 1 else None
    return layer


def inputs_of(layer: nn.Linear | nn.Conv2d, h_BTD: Tensor) -> Tensor:
    """(B*T,P): what the layer multiplies its weights with."""
    if isinstance(layer, nn.Linear):
        return h_BTD.flatten(0, 1)
    grid, k = round(h_BTD.shape[1] ** 0.5), layer.kernel_size[0]
    return F.unfold(h_BTD.transpose(1, 2).unflatten(2, (grid, grid)), k, padding=k // 2).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def _is_affine(candidate: Candidate, h_BTD: Tensor) -> bool:
    """Whether its projector computes what its one affine layer does, and nothing else."""
    head = copy.deepcopy(candidate.head)
    layer = affine_layer(head) if head is not None else None
    if layer is None or head is None:
        return False
    for weights in layer.parameters():  # as they are initialised they may be 0
        weights.normal_(generator=torch.Generator(weights.device).manual_seed(0))
    found, plain = head(h_BTD).flatten(0, 1), F.linear(inputs_of(layer, h_BTD), layer.weight.flatten(1), layer.bias)
    return found.shape == plain.shape and torch.allclose(found, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def _kernel(candidate: Candidate) -> int:
    """Taps along a side of what its affine layer reads."""
    assert candidate.head is not None
    layer = affine_layer(candidate.head)
    return layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1


@torch.no_grad()
def _solve(subject: Subject, options: TargetOptions, made: list[Candidate], held: list[Step]) -> dict[str, Reader]:
    """Closed-form fits in one pass: one set of sums and one factor a penalty for all of one kernel. held: the first batches that choose."""
    kernels: dict[int, list[Candidate]] = {}
    for c in made:
        kernels.setdefault(_kernel(c), []).append(c)
    outputs = {kernel: Outputs({c.name: len(affine_layer(c.head).weight) for c in of_kernel}) for kernel, of_kernel in kernels.items()}  # type: ignore
    ridges = {kernel: Ridge(outputs[kernel], kernel) for kernel in kernels}
    batches = -(-options.fit_samples // FIT_BATCH)
    judged = -(-batches // 8)
    rest = fit_batches(subject, options.seed, made, judged, CHOOSES, len(held)) if judged > len(held) else ()
    parts = {SOLVES: fit_batches(subject, options.seed, made, batches), CHOOSES: chain(held[:judged], rest)}
    aims = _Aims()
    with tqdm(total=batches + judged, desc="fitting projectors", unit="batch", mininterval=1.0, leave=False) as bar:
        for part, steps in parts.items():
            for step in steps:
                for kernel, of_kernel in kernels.items():
                    ridges[kernel].add(step[2].float(), outputs[kernel].add({c.name: aims(c, step) for c in of_kernel}, part))
                bar.update()
    return {name: reader for ridge in ridges.values() for name, reader in ridge.solve().items()}


@torch.no_grad()
def _take(candidate: Candidate, reader: Reader) -> None:
    """Gives a projector the weights of a reader."""
    layer = affine_layer(candidate.head) if candidate.head is not None else None
    assert layer is not None and layer.bias is not None
    k = _kernel(candidate)
    weight = reader.weight_PC.unflatten(0, (k, k, -1)).permute(3, 2, 0, 1)  # inputs are ordered by row, column, channel
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(reader.bias_C)


@torch.no_grad()
def means(subject: Subject, seed: int, made: list[Candidate]) -> dict[str, Tensor]:
    """target -> (C,) float32: the mean over train images, tokens and times of what it is regressed on (unit vectors under a cosine loss)."""
    true = [c for c in {c.target: c for c in made if c.control == NONE and c.aligned is not None}.values()]
    sums: dict[str, Tensor] = {}
    aims = _Aims()
    for step in fit_batches(subject, seed, true, MEAN):
        for c in true:
            mean = aims(c, step).double().mean((0, 1)) / MEAN
            sums[c.target] = sums[c.target] + mean if c.target in sums else mean
    return {target: mean.float() for target, mean in sums.items()}


def fit(
    subject: Subject, options: TargetOptions, made: list[Candidate], mean: Mapping[str, Tensor], keeper: Keeper | None = None
) -> dict[str, Fitted]:
    """Fits the projectors of the candidates that want it; name -> how. mean: target -> its mean, as `means` gives it. keeper: where what is on its
    way is kept, should it be interrupted."""
    to_fit = [c for c in made if c.head is not None]
    if not to_fit:
        return {}
    held = list(fit_batches(subject, options.seed, to_fit, JUDGE, CHOOSES))
    affine = [c for c in to_fit if options.fit != DESCENT and _is_affine(c, held[0][2])]
    readers = _solve(subject, options, affine, held) if affine else {}
    for c in affine:
        _take(c, readers[c.name])
    exact = [c for c in affine if directional(c, c.target_BTC(*held[0])[:1])]
    descents = {c.name: Descent(c, None if c in affine else mean[c.target]) for c in to_fit if c not in exact}
    if descents:
        going = [run.candidate for run in descents.values()]
        descend(lambda first: fit_batches(subject, options.seed, going, options.fit_steps, first=first), options.fit_steps, descents, held, keeper)
    found = {}
    for c in to_fit:
        run, reader = descents.get(c.name), readers.get(c.name)
        loss, constant_loss = judged(c, held, mean[c.target])
        found[c.name] = Fitted(
            how=" + ".join([RIDGE] * (reader is not None) + [DESCENT] * (run is not None)),
            steps=run.steps if run else -(-options.fit_samples // FIT_BATCH) * FIT_BATCH,
            loss=loss,
            constant_loss=constant_loss,
            penalty=reader.penalty if reader else float("nan"),
            converged=run.done if run else True,
        )
    return found
