"""Per-sample gradients of one parameter, in the form an engine has them: whole, or as factors whose products are never formed needlessly.

Every form answers the same questions: square norms, sums, inner products with a direction and with another's gradients. Legend: C
samples, G groups of channels, T tokens (or output pixels), d inputs, p outputs. Norms and products are float64 (C,), accumulated from
at least float32.

    Dense   g_C*                     any gradient, as `loop` and `vmap` have it; biases and affine norms
    Outer   sum_t b_t a_t^T          weights of linear layers, of convolutions once their input is unfolded
    Patches a convolution's, with the input not unfolded
    Rows    b_t to row index_t       embeddings
    Sum     of several of these      a parameter used more than once
    Zero                             a parameter the loss does not touch

Source: the products of Goodfellow (2015, arXiv:1510.01799) for T = 1 and of Li et al. (2022, arXiv:2110.05679, "ghost norm") for T > 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

# Multiply-adds that squaring and adding up one element of a formed gradient costs as much as. On a CPU, where one sample's gradient stays in
# cache, 7 to 8 were measured (float32, widths 384 to 3072); on GPUs it is memory traffic over arithmetic, by their data sheets (unmeasured).
ELEMENT_COST, ELEMENT_COST_CUDA = 8, 75
LONG_ROW = 4096  # elements from which on a CPU takes the products of rows one by one
CONVOLVED_PIXELS = 256  # from so many output pixels on, a CPU forms one sample's gradient faster by its convolution kernels than unfolded
SLICE_BYTES = 1 << 28  # what materialised gradients may take at once on a GPU; a CPU takes one sample at a time, which stays in cache


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _element_cost(x: Tensor) -> int:
    return ELEMENT_COST_CUDA if x.is_cuda else ELEMENT_COST


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """(C,) float64: inner products of the rows of two tensors of one shape."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if x.device.type == "cpu" and x.shape[1] >= LONG_ROW:  # BLAS row by row: half the memory traffic of a product and its sum
        return torch.stack([torch.dot(a, b) for a, b in zip(x, y, strict=True)]).double()
    return torch.linalg.vecdot(x, y).double()


def _slices(x: Tensor, shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Samples of x whose whole gradients, of that shape, are formed at once: as many as fit SLICE_BYTES on a GPU, one on a CPU."""
    step = max(1, SLICE_BYTES // (4 * shape.numel())) if x.is_cuda else 1
    return ((i, min(i + step, len(x))) for i in range(0, len(x), step))


def _halves(plus: Tensor, minus: Tensor, start: int) -> tuple[tuple[Tensor, slice], tuple[Tensor, slice]]:
    """Each sum with the samples that belong to it."""
    return (plus, slice(start, None, 2)), (minus, slice(1 - start, None, 2))


def _add_formed(formed: Iterator[tuple[int, Tensor]], plus: Tensor, minus: Tensor, start: int) -> Tensor:
    """`PerSample.accumulate` for whole gradients that come a few samples at a time; their sum is the weight gradient, for free."""
    norms = []
    for i, g in formed:
        norms.append(_dot(g, g))
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
        for total, part in _halves(plus, minus, start):
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


class Factored(PerSample):
    """Forms whose gradients are linear in b_C*, the gradients of a layer's output."""

    b: Tensor

    @property
    def samples(self) -> int:  # type: ignore[override]
        return len(self.b)

    def vanishes(self, i: int) -> bool:
        return not bool(self.b[i].any())


@dataclass(frozen=True)
class Outer(Factored):
    """a_CGTd, b_CGTp; the parameter's shape is (G p, ...) with d elements behind."""

    a: Tensor
    b: Tensor
    shape: torch.Size

    def _materialise(self) -> bool:
        """True where forming the gradients costs less than Gram matrices over tokens."""
        (_, _, t, d), p = self.a.shape, self.b.shape[-1]
        return _element_cost(self.a) * d * p < t * t * (d + p)

    def _formed(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, gradients (k, G, p, d)), a few samples at a time; each is to be used up before the next is asked for."""
        if self.a.is_cuda or self.a.shape[1] > 1:
            for i, j in _slices(self.a, self.shape):
                yield i, wide(self.b[i:j]).transpose(-1, -2) @ wide(self.a[i:j])
            return
        out = None
        for i in range(self.samples):  # one large product into the same memory, which stays in cache
            out = torch.mm(wide(self.b[i, 0]).T, wide(self.a[i, 0]), out=out)
            yield i, out[None, None]

    def accumulate(self, plus: Tensor, minus: Tensor, start: int) -> Tensor:
        if not self._materialise():
            for total, part in _halves(plus, minus, start):
                a, b = (wide(x[part].transpose(0, 1).flatten(1, 2)) for x in (self.a, self.b))  # (G, C T, .)
                if a.shape[0] == 1:
                    total.view(b.shape[-1], -1).addmm_(b[0].T, a[0])
                else:
                    total.view(a.shape[0], b.shape[-1], -1).baddbmm_(b.transpose(1, 2), a)
            return self._gram(self)
        return _add_formed(self._formed(), plus, minus, start)

    def _gram(self, other: Outer) -> Tensor:
        """<sum_t b_t a_t^T, sum_s b'_s a'_s^T> = sum_ts (a_t . a'_s) (b_t . b'_s), per sample and summed over groups."""
        gram_a = wide(self.a) @ wide(other.a).transpose(-1, -2)
        gram_b = wide(self.b) @ wide(other.b).transpose(-1, -2)
        return _dot(gram_a, gram_b)

    def square_norms(self) -> Tensor:
        if not self._materialise():
            return self._gram(self)
        return torch.cat([_dot(g, g) for _, g in self._formed()])

    def inner(self, other: Outer) -> Tensor:
        """(C,) float64: products with another's gradients, sample by sample."""
        if self._materialise() and other._materialise():
            return torch.cat([_dot(g, h) for (_, g), (_, h) in zip(self._formed(), other._formed(), strict=True)])
        return self._gram(other)

    def dots(self, direction: Tensor) -> Tensor:
        groups, p = self.b.shape[1], self.b.shape[-1]
        matrix = direction.reshape(groups, p, -1)
        narrow, wide_side = (self.b, self.a) if p < self.a.shape[-1] else (self.a, self.b)
        matrix = matrix.transpose(1, 2) if narrow is self.b else matrix
        # the wider factor times the matrix, then the narrower one; without groups as one large product
        turned = wide(wide_side) @ (matrix if groups > 1 else matrix[0])
        return _dot(turned, wide(narrow))

    def dense(self) -> Tensor:
        return (wide(self.b).transpose(-1, -2) @ wide(self.a)).reshape(-1, *self.shape)

    def pooled(self, draws: int) -> PerSample:
        a, b = (x.unflatten(0, (-1, draws)).transpose(1, 2).flatten(2, 3) for x in (self.a, self.b))
        return Outer(a, b / draws, self.shape)

    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True)
class Patches(Factored):
    """x_CMdHW, b_CMpHW: a convolution's input (padded already) and output gradients, M of them a sample; weight (p, d/groups, kh, kw)."""

    x: Tensor
    b: Tensor
    shape: torch.Size
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def outer(self, i: int = 0, j: int | None = None) -> Outer:
        """Samples i..j with their inputs unfolded: kh kw times the memory."""
        x, b = wide(self.x[i:j]), wide(self.b[i:j])
        c, m = x.shape[:2]
        a_NKT = F.unfold(x.flatten(0, 1), self.shape[-2:], self.dilation, 0, self.stride)
        a = a_NKT.view(c, m, self.groups, -1, a_NKT.shape[-1]).permute(0, 2, 1, 4, 3).flatten(2, 3)
        b = b.flatten(3).view(c, m, self.groups, -1, a_NKT.shape[-1]).permute(0, 2, 1, 4, 3).flatten(2, 3)
        return Outer(a, b, self.shape)

    def _sum(self, part: slice) -> Tensor:
        """Of the gradients of some samples: a convolution's ordinary weight gradient."""
        x, b = wide(self.x[part]).flatten(0, 1), wide(self.b[part]).flatten(0, 1)
        return conv2d_weight(x, self.shape, b, self.stride, 0, self.dilation, self.groups)

    def _formed(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, gradients (k, p, d / groups, kh, kw)), a few samples at a time."""
        for i, j in _slices(self.x, self.shape):
            yield i, self._sum(slice(i, j))[None] if self._convolves() else self.outer(i, j).dense()

    def _convolves(self) -> bool:
        return not self.x.is_cuda and self.b.shape[-2:].numel() >= CONVOLVED_PIXELS

    def _pixel_gram(self) -> Tensor:
        """Square norms from one Gram matrix over input pixels: that of the unfolded input is kh kw shifted copies of it, added up. M = 1."""
        (c, _, _, h, w), (kh, kw), (ho, wo) = self.x.shape, self.shape[-2:], self.b.shape[-2:]
        norms = []
        for i in range(c):  # a sample at a time: the Gram matrices stay in cache
            x = wide(self.x[i, 0]).reshape(self.groups, -1, h * w)
            b = wide(self.b[i, 0]).reshape(self.groups, -1, ho * wo)
            pixels = (x.transpose(1, 2) @ x).view(self.groups, h, w, h, w)
            rows = [slice(k * self.dilation[0], k * self.dilation[0] + (ho - 1) * self.stride[0] + 1, self.stride[0]) for k in range(kh)]
            columns = [slice(k * self.dilation[1], k * self.dilation[1] + (wo - 1) * self.stride[1] + 1, self.stride[1]) for k in range(kw)]
            patches = torch.zeros(self.groups, ho, wo, ho, wo, dtype=x.dtype, device=x.device)
            for row in rows:
                for column in columns:
                    patches += pixels[:, row, column, row, column]
            norms.append(_dot(patches.view(1, -1), (b.transpose(1, 2) @ b).view(1, -1)))
        return torch.cat(norms)

    def _cheapest(self) -> str:
        """ "form" the gradients, "unfold" for a Gram matrix over patches, or take it over "pixels": by multiply-adds and memory traffic."""
        (_, m, channels, h, w), p = self.x.shape, self.b.shape[2]
        cost, t, size, area = _element_cost(self.x), m * self.b.shape[-2] * self.b.shape[-1], self.shape.numel(), self.shape[-2] * self.shape[-1]
        costs = {
            "form": cost * size + (0 if self._convolves() else cost * t * channels * area),
            "unfold": t * t * (channels * area + p) + cost * t * channels * area,
            "pixels": (h * w) ** 2 * channels + t * t * p + cost * t * t * area * self.groups if m == 1 else float("inf"),
        }
        return min(costs, key=lambda name: costs[name])

    def accumulate(self, plus: Tensor, minus: Tensor, start: int) -> Tensor:
        way = self._cheapest()
        if way == "form":
            return _add_formed(self._formed(), plus, minus, start)
        for total, part in _halves(plus, minus, start):
            if len(self.x[part]):
                total.add_(self._sum(part).view_as(total))
        return self.square_norms()

    def square_norms(self) -> Tensor:
        way = self._cheapest()
        if way == "pixels":
            return self._pixel_gram()
        if way == "form":
            return torch.cat([_dot(g, g) for _, g in self._formed()])
        return torch.cat([o._gram(o) for o in (self.outer(i, j) for i, j in _slices(self.x, self.shape))])

    def dots(self, direction: Tensor) -> Tensor:
        y = F.conv2d(wide(self.x).flatten(0, 1), direction.view(self.shape), None, self.stride, 0, self.dilation, self.groups)
        return _dot(y.view(self.b.shape), wide(self.b))

    def dense(self) -> Tensor:
        return self.outer().dense()

    def pooled(self, draws: int) -> PerSample:
        x, b = (x.unflatten(0, (-1, draws)).flatten(1, 2) for x in (self.x, self.b))
        return Patches(x, b / draws, self.shape, self.stride, self.dilation, self.groups)

    def nbytes(self) -> int:
        return self.x.nbytes + self.b.nbytes


@dataclass(frozen=True)
class Rows(Factored):
    """index_CT int64, b_CTp; the parameter's shape is (number of rows, p)."""

    index: Tensor
    b: Tensor
    shape: torch.Size

    def accumulate(self, plus: Tensor, minus: Tensor, start: int) -> Tensor:
        for total, part in _halves(plus, minus, start):
            total.index_add_(0, self.index[part].flatten(), self.b[part].flatten(0, 1).to(total.dtype))
        return self.square_norms()

    def square_norms(self) -> Tensor:
        return self.inner(self)

    def inner(self, other: Rows) -> Tensor:
        """(C,) float64: tokens meet where they read the same row."""
        same = self.index[:, :, None] == other.index[:, None, :]
        return ((wide(self.b) @ wide(other.b).transpose(1, 2)) * same).sum((1, 2), dtype=torch.float64)

    def inner_outer(self, other: Outer) -> Tensor:
        """(C,) float64: products with the gradients of a linear layer that shares the table as its weight (tied output layer)."""
        a, b = wide(other.a[:, 0]), wide(other.b[:, 0])
        at_row = b.gather(2, self.index[:, None, :].expand(-1, b.shape[1], -1))
        return (at_row * (a @ wide(self.b).transpose(1, 2))).sum((1, 2), dtype=torch.float64)

    def dots(self, direction: Tensor) -> Tensor:
        return _dot(direction[self.index], wide(self.b))

    def dense(self) -> Tensor:
        made = wide(self.b).new_zeros(self.samples, *self.shape)
        return made.scatter_add_(1, self.index[:, :, None].expand(-1, -1, self.shape[1]), wide(self.b))

    def pooled(self, draws: int) -> PerSample:
        index, b = (x.unflatten(0, (-1, draws)).flatten(1, 2) for x in (self.index, self.b))
        return Rows(index, b / draws, self.shape)

    def nbytes(self) -> int:
        return self.index.nbytes + self.b.nbytes


@dataclass(frozen=True)
class Sum(PerSample):
    """Of at least two: a module used twice, or a parameter that two modules share."""

    parts: tuple[PerSample, ...]

    @property
    def samples(self) -> int:  # type: ignore[override]
        return self.parts[0].samples

    def _cross(self) -> Tensor:
        total = torch.zeros_like(inner(self.parts[0], self.parts[1]))
        for k, part in enumerate(self.parts):
            for other in self.parts[:k]:
                total += 2 * inner(part, other)
        return total

    def accumulate(self, plus: Tensor, minus: Tensor, start: int) -> Tensor:
        return torch.stack([part.accumulate(plus, minus, start) for part in self.parts]).sum(0) + self._cross()

    def square_norms(self) -> Tensor:
        return torch.stack([part.square_norms() for part in self.parts]).sum(0) + self._cross()

    def dots(self, direction: Tensor) -> Tensor:
        return torch.stack([part.dots(direction) for part in self.parts]).sum(0)

    def dense(self) -> Tensor:
        return torch.stack([wide(part.dense()) for part in self.parts]).sum(0)

    def pooled(self, draws: int) -> PerSample:
        return Sum(tuple(part.pooled(draws) for part in self.parts))

    def vanishes(self, i: int) -> bool:
        return all(part.vanishes(i) for part in self.parts)

    def nbytes(self) -> int:
        return sum(part.nbytes() for part in self.parts)


def inner(x: PerSample, y: PerSample) -> Tensor:
    """(C,) float64: <x_i, y_i> for the gradients of the same parameter at the same samples, whatever their forms."""
    if isinstance(x, Zero) or isinstance(y, Zero):
        return (x if isinstance(x, Zero) else y).square_norms()
    if isinstance(x, Sum):
        return torch.stack([inner(part, y) for part in x.parts]).sum(0)
    if isinstance(y, Sum) or (isinstance(x, Outer) and isinstance(y, Rows)):
        return inner(y, x)
    if isinstance(x, Patches) and isinstance(y, Patches):
        return torch.cat([x.outer(i, i + 1).inner(y.outer(i, i + 1)) for i in range(x.samples)])
    if isinstance(x, Outer) and isinstance(y, Outer):
        return x.inner(y)
    if isinstance(x, Rows) and isinstance(y, Rows):
        return x.inner(y)
    if isinstance(x, Rows) and isinstance(y, Outer):
        return x.inner_outer(y)
    return _dot(wide(x.dense()), wide(y.dense()))
