"""Gradients of convolutions, their input kept as it is: unfolded, convolved or taken over pixels, whichever is cheapest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from gsnr.gradients.base import PerSample, Signs, add_formed, cheapest, dot, dots_formed, slices, square, wide
from gsnr.gradients.costs import costs_of
from gsnr.gradients.factors import Factored, Outer

CONVOLVED_PIXELS = 256  # below so many output pixels a CPU's convolution kernels are no faster for one sample than unfolding


@dataclass(frozen=True)
class Patches(Factored):
    """x_CMdHW, b_CMpHW: a convolution's input (padded already) and output gradients, M of them a sample; weight (p, d/groups, kh, kw)."""

    x: Tensor
    b: Tensor
    shape: torch.Size
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def overlap(self) -> bool:
        """Whether unfolding would copy any input more than once; not so for single pixels and for images cut into tokens."""
        return any(k > s for k, s in zip(self.shape[-2:], self.stride, strict=True))

    def outer(self, i: int = 0, j: int | None = None) -> Outer:
        """Samples i..j with their inputs unfolded: kh kw times the memory."""
        x, b = wide(self.x[i:j]), wide(self.b[i:j])
        c, m = x.shape[:2]
        a_NKT = F.unfold(x.flatten(0, 1), self.shape[-2:], self.dilation, 0, self.stride)
        a = a_NKT.view(c, m, self.groups, -1, a_NKT.shape[-1]).permute(0, 2, 1, 4, 3).flatten(2, 3)
        b = b.flatten(3).view(c, m, self.groups, -1, a_NKT.shape[-1]).permute(0, 2, 1, 4, 3).flatten(2, 3)
        return Outer(a, b, self.shape)

    def _sum(self, part: slice | Tensor) -> Tensor:
        """Of the gradients of some samples: a convolution's ordinary weight gradient."""
        x, b = wide(self.x[part]).flatten(0, 1), wide(self.b[part]).flatten(0, 1)
        return conv2d_weight(x, self.shape, b, self.stride, 0, self.dilation, self.groups)

    def _formed(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, gradients (k, p, d / groups, kh, kw)), a few samples at a time."""
        if cheapest(self._forming()) == "convolve":
            yield from ((i, self._sum(slice(i, i + 1))[None]) for i in range(self.samples))
        else:
            yield from ((i, self.outer(i, j).dense()) for i, j in self._pieces())

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Samples that are unfolded at once."""
        return slices(self.x, torch.Size((max(self._sizes),)))

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Output pixels of one sample, elements of its unfolded input, elements of its gradient."""
        t = self.b.shape[1] * self.b.shape[-2:].numel()
        return t, t * self.x.shape[2] * self.shape[-2:].numel(), self.shape.numel()

    def _forming(self) -> dict[str, float]:
        """What forming one sample's gradient costs by either way."""
        (t, unfolded, size), cost = self._sizes, costs_of(self.x)
        many = not self.x.is_cuda and self.b.shape[-2:].numel() >= CONVOLVED_PIXELS
        return {"convolve": cost.convolve * t * size if many else math.inf, "unfold": t * size + cost.unfold * unfolded}

    def _way(self, sums: bool, other: Patches | None = None) -> str:
        """ "form" gradients, "unfold" for a Gram matrix over patches, or take it over "pixels": for square norms or products with another's.
        sums: their sum is asked for as well, which forming yields for free."""
        (_, m, channels, h, w), p, cost = self.x.shape, self.b.shape[2], costs_of(self.x)
        y, (t, unfolded, size) = other or self, self._sizes
        s, both, shifts = y._sizes[0], 1 if other is None else 2, self.shape[-2:].numel()
        over_patches = t * s * (unfolded // t + p) + both * cost.unfold * unfolded + 8 * cost.call
        over_pixels = (h * w) ** 2 * channels + t * t * (p + cost.element * shifts * self.groups) + (8 + shifts) * cost.call
        costs = {
            "form": both * min(self._forming().values()) + cost.element * size + 6 * cost.call,
            "unfold": over_patches,
            "pixels": over_pixels if m == 1 and y.x.shape == self.x.shape and y.b.shape == self.b.shape else math.inf,
        }
        in_sum = cost.convolve_all * t * size if sums else 0
        return cheapest({way: value + in_sum * (way != "form") for way, value in costs.items()})

    def _gram(self, other: Patches, way: str) -> Tensor:
        if way == "pixels":
            return self._pixel_gram(other)
        pieces = self._pieces()
        if other is self:
            return torch.cat([o.gram(o) for o in (self.outer(i, j) for i, j in pieces)])
        return torch.cat([self.outer(i, j).gram(other.outer(i, j)) for i, j in pieces])

    def _pixel_gram(self, other: Patches) -> Tensor:
        """From one Gram matrix over input pixels: that of the unfolded inputs is kh kw shifted copies of it, added up. M = 1."""
        (c, _, _, h, w), (kh, kw), (ho, wo) = self.x.shape, self.shape[-2:], self.b.shape[-2:]
        rows = [slice(k * self.dilation[0], k * self.dilation[0] + (ho - 1) * self.stride[0] + 1, self.stride[0]) for k in range(kh)]
        columns = [slice(k * self.dilation[1], k * self.dilation[1] + (wo - 1) * self.stride[1] + 1, self.stride[1]) for k in range(kw)]
        products = []
        for i in range(c):  # a sample at a time: the Gram matrices stay in cache
            x, y = (wide(z.x[i, 0]).reshape(self.groups, -1, h * w) for z in (self, other))
            b, v = (wide(z.b[i, 0]).reshape(self.groups, -1, ho * wo) for z in (self, other))
            pixels = (x.transpose(1, 2) @ y).view(self.groups, h, w, h, w)
            patches = torch.zeros(self.groups, ho, wo, ho, wo, dtype=x.dtype, device=x.device)
            for row in rows:
                for column in columns:
                    patches += pixels[:, row, column, row, column]
            products.append(dot(patches.view(1, -1), (b.transpose(1, 2) @ v).view(1, -1)))
        return torch.cat(products)

    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        way = self._way(sums=True)
        if way == "form":
            return add_formed(self._formed(), plus, minus, signs)
        for total, part in signs.sums(plus, minus):
            total.add_(self._sum(part).view_as(total))
        return self._gram(self, way)

    def square_norms(self) -> Tensor:
        way = self._way(sums=False)
        return torch.cat([square(g) for _, g in self._formed()]) if way == "form" else self._gram(self, way)

    def inner(self, other: Patches) -> Tensor:
        """(C,) float64: products with another's gradients, sample by sample."""
        way = self._way(False, other)
        if way == "form":
            return torch.cat([dot(g, h) for (_, g), (_, h) in zip(self._formed(), other._formed(), strict=True)])
        return self._gram(other, way)

    def products(self, directions: Sequence[Tensor]) -> Tensor:
        (t, _, size), k, cost = self._sizes, len(directions), costs_of(self.x)
        if cheapest({"form": min(self._forming().values()) + k * cost.element * size, "turn": k * cost.convolve_all * t * size}) == "form":
            return dots_formed(self._formed(), directions)
        return super().products(directions)

    def dots(self, direction: Tensor) -> Tensor:
        y = F.conv2d(wide(self.x).flatten(0, 1), direction.view(self.shape), None, self.stride, 0, self.dilation, self.groups)
        return dot(y.view(self.b.shape), wide(self.b))

    def dense(self) -> Tensor:
        return self.outer().dense()

    def take(self, rows: Tensor) -> PerSample:
        return Patches(self.x[rows], self.b[rows], self.shape, self.stride, self.dilation, self.groups)

    def pooled(self, draws: int) -> PerSample:
        x, b = (x.unflatten(0, (-1, draws)).flatten(1, 2) for x in (self.x, self.b))
        return Patches(x, b / draws, self.shape, self.stride, self.dilation, self.groups)

    def double(self) -> PerSample:
        return replace(self, x=self.x.double(), b=self.b.double())

    def nbytes(self) -> int:
        return self.x.nbytes + self.b.nbytes
