"""What every form of per-sample gradients answers, the two plain forms, and the products that all forms are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Multiply-adds that squaring and adding up one element of a formed gradient costs as much as. On a CPU, where one sample's gradient stays in
# cache, 7 to 8 were measured (float32, widths 384 to 3072); on GPUs it is memory traffic over arithmetic, by their data sheets (unmeasured).
ELEMENT_COST, ELEMENT_COST_CUDA = 8, 75
LONG_ROW = 4096  # elements from which on a CPU takes the products of rows one by one
SLICE_BYTES = 1 << 28  # what materialised gradients may take at once on a GPU; a CPU takes one sample at a time, which stays in cache


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def element_cost(x: Tensor) -> int:
    return ELEMENT_COST_CUDA if x.is_cuda else ELEMENT_COST


def dot(x: Tensor, y: Tensor) -> Tensor:
    """(C,) float64: inner products of the rows of two tensors of one shape."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if x.device.type == "cpu" and x.shape[1] >= LONG_ROW:  # BLAS row by row: half the memory traffic of a product and its sum
        return torch.stack([torch.dot(a, b) for a, b in zip(x, y, strict=True)]).double()
    return torch.linalg.vecdot(x, y).double()


def slices(x: Tensor, shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Samples of x whose whole gradients, of that shape, are formed at once: as many as fit SLICE_BYTES on a GPU, one on a CPU."""
    step = max(1, SLICE_BYTES // (4 * shape.numel())) if x.is_cuda else 1
    return ((i, min(i + step, len(x))) for i in range(0, len(x), step))


def halves(plus: Tensor, minus: Tensor, start: int) -> tuple[tuple[Tensor, slice], tuple[Tensor, slice]]:
    """Each sum with the samples that belong to it."""
    return (plus, slice(start, None, 2)), (minus, slice(1 - start, None, 2))


def add_formed(formed: Iterator[tuple[int, Tensor]], plus: Tensor, minus: Tensor, start: int) -> Tensor:
    """`PerSample.accumulate` for whole gradients that come a few samples at a time; their sum is the weight gradient, for free."""
    norms = []
    for i, g in formed:
        norms.append(dot(g, g))
        for total, first in ((plus, (start - i) % 2), (minus, (start - i + 1) % 2)):
            if first < len(g):
                total.view(g.shape[1:]).add_(g[0] if len(g) == 1 else g[first::2].sum(0))
    return torch.cat(norms)


class PerSample(ABC):
    """Gradients of C samples with respect to one parameter."""

    samples: int

    @abstractmethod
    def accumulate(self, plus: Tensor, minus: Tensor, start: int) -> Tensor:
        """Adds every other gradient to `plus`, from number `start` (0 or 1) on, and the others to `minus`; returns the square norms, (C,) float64."""

    @abstractmethod
    def square_norms(self) -> Tensor:
        """(C,) float64."""

    @abstractmethod
    def dots(self, direction: Tensor) -> Tensor:
        """(C,) float64: products with one tensor of the parameter's shape."""

    @abstractmethod
    def dense(self) -> Tensor:
        """(C, *parameter shape)."""

    @abstractmethod
    def pooled(self, draws: int) -> PerSample:
        """Gradients of C / draws samples: means over `draws` neighbours each."""

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

    def accumulate(self, plus: Tensor, minus: Tensor, start: int) -> Tensor:
        return self.square_norms()

    def square_norms(self) -> Tensor:
        return torch.zeros(self.samples, dtype=torch.float64, device=self.like.device)

    def dots(self, direction: Tensor) -> Tensor:
        return self.square_norms()

    def dense(self) -> Tensor:
        return self.like.new_zeros(self.samples, *self.like.shape)

    def pooled(self, draws: int) -> PerSample:
        return Zero(self.samples // draws, self.like)

    def nbytes(self) -> int:
        return 0


@dataclass(frozen=True)
class Dense(PerSample):
    g: Tensor

    @property
    def samples(self) -> int:  # type: ignore[override]
        return len(self.g)

    def accumulate(self, plus: Tensor, minus: Tensor, start: int) -> Tensor:
        for total, part in halves(plus, minus, start):
            total.add_(self.g[part].sum(0, dtype=total.dtype))
        return self.square_norms()

    def square_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.g.reshape(self.samples, -1), dim=1, dtype=torch.float64).square()

    def dots(self, direction: Tensor) -> Tensor:
        g = wide(self.g).reshape(self.samples, -1)
        return (g @ direction.flatten().to(g.dtype)).double()

    def dense(self) -> Tensor:
        return self.g

    def pooled(self, draws: int) -> PerSample:
        return Dense(wide(self.g).unflatten(0, (-1, draws)).mean(1))

    def nbytes(self) -> int:
        return self.g.nbytes
