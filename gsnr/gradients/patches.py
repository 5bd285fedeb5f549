"""Gradients of convolutions, their input kept as it is: unfolded, convolved or taken over pixels, whichever is cheapest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from gsnr.gradients.base import PerSample, Signs, add_formed, dot, element_cost, slices, square, wide
from gsnr.gradients.factors import Factored, Outer

CONVOLVED_PIXELS = 256  # from so many output pixels on, a CPU forms one sample's gradient faster by its convolution kernels than unfolded


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

    def _sum(self, part: slice | Tensor) -> Tensor:
        """Of the gradients of some samples: a convolution's ordinary weight gradient."""
        x, b = wide(self.x[part]).flatten(0, 1), wide(self.b[part]).flatten(0, 1)
        return conv2d_weight(x, self.shape, b, self.stride, 0, self.dilation, self.groups)

    def _formed(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, gradients (k, p, d / groups, kh, kw)), a few samples at a time."""
        for i, j in slices(self.x, self.shape):
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
            norms.append(dot(patches.view(1, -1), (b.transpose(1, 2) @ b).view(1, -1)))
        return torch.cat(norms)

    def _cheapest(self) -> str:
        """ "form" the gradients, "unfold" for a Gram matrix over patches, or take it over "pixels": by multiply-adds and memory traffic."""
        (_, m, channels, h, w), p = self.x.shape, self.b.shape[2]
        cost, t, size, area = element_cost(self.x), m * self.b.shape[-2] * self.b.shape[-1], self.shape.numel(), self.shape[-2] * self.shape[-1]
        costs = {
            "form": cost * size + (0 if self._convolves() else cost * t * channels * area),
            "unfold": t * t * (channels * area + p) + cost * t * channels * area,
            "pixels": (h * w) ** 2 * channels + t * t * p + cost * t * t * area * self.groups if m == 1 else float("inf"),
        }
        return min(costs, key=lambda name: costs[name])

    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        way = self._cheapest()
        if way == "form":
            return add_formed(self._formed(), plus, minus, signs)
        for total, part in zip((plus, minus), signs.rows, strict=True):
            if len(part):
                total.add_(self._sum(part).view_as(total))
        return self.square_norms()

    def square_norms(self) -> Tensor:
        way = self._cheapest()
        if way == "pixels":
            return self._pixel_gram()
        if way == "form":
            return torch.cat([square(g) for _, g in self._formed()])
        return torch.cat([o.gram(o) for o in (self.outer(i, j) for i, j in slices(self.x, self.shape))])

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
