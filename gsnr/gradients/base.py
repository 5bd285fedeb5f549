"""What every form of per-sample gradients answers, the two plain forms, and the products that all forms are made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PREFERRED: tuple[str, ...] = ()  # ways to take whatever they cost, for tests: "form", "convolve", "gram", "turn", "unfold", "pixels"
LONG_ROW = 1 << 16  # elements from which on a CPU takes the products of rows one by one
SLICE_BYTES, SLICE_BYTES_CUDA = 1 << 20, 1 << 28  # what materialised gradients may take at once: on a CPU they stay in cache


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def cheapest(costs: dict[str, float]) -> str:
    """The way of least cost (infinite: impossible), or the first that is possible of `PREFERRED`."""
    asked = [way for way in PREFERRED if costs.get(way, math.inf) < math.inf]
    return asked[0] if asked else min(costs, key=lambda way: costs[way])


def dot(x: Tensor, y: Tensor) -> Tensor:
    """(C,) float64: inner products of the rows of two tensors of one shape."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if x.device.type == "cpu" and x.shape[1] >= LONG_ROW:  # BLAS row by row: half the memory traffic of a product and its sum
        return torch.stack([torch.dot(a, b) for a, b in zip(x, y, strict=True)]).double()
    return torch.linalg.vecdot(x, y).double()


def square(x: Tensor) -> Tensor:
    """(C,) float64: square norms of the rows of a tensor. On a GPU read once, where a product would be written and read again."""
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1).double().square() if x.is_cuda else dot(x, x)


def slices(x: Tensor, shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Samples of x whose whole gradients, of that shape, are formed at once: one at least."""
    step = max(1, (SLICE_BYTES_CUDA if x.is_cuda else SLICE_BYTES) // (4 * shape.numel()))
    return ((i, min(i + step, len(x))) for i in range(0, len(x), step))


def dots_formed(formed: Iterator[tuple[int, Tensor]], directions: Sequence[Tensor]) -> Tensor:
    """(K, C) float64: `PerSample.products` for whole gradients that come a few samples at a time."""
    flat = [s.flatten() for s in directions]

    def products(g: Tensor) -> Tensor:
        rows = g.reshape(len(g), -1)
        if len(rows) == 1 and not g.is_cuda:
            return torch.stack([torch.dot(rows[0], s) for s in flat]).unsqueeze(1)
        return torch.stack([rows @ s for s in flat])

    return torch.cat([products(g) for _, g in formed], dim=1).double()


@dataclass(frozen=True)
class Signs:
    """Which of C samples count for which of two sums; one that gets none is left untouched. positive: (C,) on the host; rows: the numbers of
    those of "plus" and of "minus", int64; masks: (2, C) of 0 and 1, for the same."""

    positive: tuple[bool, ...]
    rows: tuple[Tensor, Tensor]
    masks: Tensor

    @classmethod
    def of(cls, sign_C: NDArray[np.float64], device: torch.device) -> Signs:
        """From +-1."""
        masks = np.stack([sign_C > 0, sign_C <= 0])
        plus, minus = (torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in masks)
        return cls(tuple(masks[0].tolist()), (plus, minus), torch.from_numpy(masks.astype(np.float32)).to(device))

    def sums(self, plus: Tensor, minus: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The sums that get any samples, each with their numbers."""
        return ((total, part) for total, part in zip((plus, minus), self.rows, strict=True) if len(part))


def add_formed(formed: Iterator[tuple[int, Tensor]], plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
    """`PerSample.accumulate` for whole gradients that come a few samples at a time; their sum is the weight gradient, for free."""
    norms = []
    for i, g in formed:
        norms.append(square(g))
        if len(g) == 1:
            (plus if signs.positive[i] else minus).view(g.shape[1:]).add_(g[0])
        else:
            add_masked(g, plus, minus, signs, i)
    return torch.cat(norms)


def add_masked(g: Tensor, plus: Tensor, minus: Tensor, signs: Signs, first: int = 0) -> None:
    """Adds whole gradients, of samples from `first` on, to their sums by products with masks: gathering them would cost several times as much."""
    rows = g.reshape(len(g), -1).to(plus.dtype)
    masks = signs.masks[:, first : first + len(g)].to(plus.dtype)
    for total, mask, part in zip((plus, minus), masks, signs.rows, strict=True):
        if len(part):
            total.view(-1).addmv_(rows.T, mask)


class PerSample(ABC):
    """Gradients of C samples with respect to one parameter."""

    samples: int

    @abstractmethod
    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        """Adds the gradients of sign + to `plus` and the others to `minus`; returns the square norms, (C,) float64."""

    @abstractmethod
    def square_norms(self) -> Tensor:
        """(C,) float64."""

    @abstractmethod
    def dots(self, direction: Tensor) -> Tensor:
        """(C,) float64: products with one tensor of the parameter's shape."""

    def products(self, directions: Sequence[Tensor]) -> Tensor:
        """(K, C) float64: `dots` with each of K directions, at no more than their cost one by one."""
        return torch.stack([self.dots(direction) for direction in directions])

    @abstractmethod
    def dense(self) -> Tensor:
        """(C, *parameter shape)."""

    @abstractmethod
    def take(self, rows: Tensor) -> PerSample:
        """Gradients of some samples, by their numbers (int64)."""

    @abstractmethod
    def pooled(self, draws: int) -> PerSample:
        """Gradients of C / draws samples: means over `draws` neighbours each."""

    @abstractmethod
    def double(self) -> PerSample:
        """The same gradients, from here on in float64."""

    @abstractmethod
    def nbytes(self) -> int:
        """Memory it holds."""

    def vanishes(self, i: int) -> bool:
        """True only if sample i's gradient is exactly zero; factors are not multiplied to find out."""
        return not bool(self.square_norms()[i])


@dataclass(frozen=True)
class Zero(PerSample):
    samples: int
    like: Tensor

    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        return self.square_norms()

    def square_norms(self) -> Tensor:
        return torch.zeros(self.samples, dtype=torch.float64, device=self.like.device)

    def dots(self, direction: Tensor) -> Tensor:
        return self.square_norms()

    def dense(self) -> Tensor:
        return self.like.new_zeros(self.samples, *self.like.shape)

    def take(self, rows: Tensor) -> PerSample:
        return Zero(len(rows), self.like)

    def pooled(self, draws: int) -> PerSample:
        return Zero(self.samples // draws, self.like)

    def double(self) -> PerSample:
        return self

    def nbytes(self) -> int:
        return 0


@dataclass(frozen=True)
class Dense(PerSample):
    g: Tensor

    @property
    def samples(self) -> int:  # type: ignore[override]
        return len(self.g)

    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        add_masked(self.g, plus, minus, signs)
        return self.square_norms()

    def square_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.g.reshape(self.samples, -1), dim=1, dtype=torch.float64).square()

    def dots(self, direction: Tensor) -> Tensor:
        g = wide(self.g).reshape(self.samples, -1)
        return (g @ direction.flatten().to(g.dtype)).double()

    def dense(self) -> Tensor:
        return self.g

    def take(self, rows: Tensor) -> PerSample:
        return Dense(self.g[rows])

    def pooled(self, draws: int) -> PerSample:
        return Dense(wide(self.g).unflatten(0, (-1, draws)).mean(1))

    def double(self) -> PerSample:
        return Dense(self.g.double())

    def nbytes(self) -> int:
        return self.g.nbytes
