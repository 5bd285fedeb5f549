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

    def _factors(self, i: int, j: int, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of samples i..j, per group of channels: their unfolded inputs a_kGTK, whose K are (kh, kw, d / groups), and b_kGpT. Channels come last,
        so whole rows of them are copied, into `out` where there is one; `F.unfold` gathers elements one by one, and takes five times as long."""
        x, b = wide(self.x[i:j]).movedim(2, -1).contiguous(), wide(self.b[i:j])
        (c, m, _, _, d), (n, o, h, w, e) = x.shape, x.stride()
        (_, own, kh, kw), (ho, wo), g = self.shape, b.shape[-2:], self.groups
        sizes = (c, g, m, ho, wo, kh, kw, d // g)
        strides = (n, e * own, o, h * self.stride[0], w * self.stride[1], h * self.dilation[0], w * self.dilation[1], e)
        windows = x.as_strided(sizes, strides)
        a = windows.clone(memory_format=torch.contiguous_format) if out is None else out[: j - i].view(sizes).copy_(windows)
        return a.view(c, g, m * ho * wo, -1), b.flatten(3).movedim(1, 2).reshape(c, g, -1, m * ho * wo)

    def _formed(self, way: str) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, gradients), a few samples at a time; each is to be used up before the next is asked for. "convolve": (k, p,
        d / groups, kh, kw); "unfold": channels last, (k, p, kh, kw, d / groups)."""
        if way == "convolve":
            yield from ((i, self._sum(slice(i, i + 1))[None]) for i in range(self.samples))
            return
        pieces, (p, own, kh, kw) = list(self._pieces()), self.shape
        most = max((j - i for i, j in pieces), default=0)
        # the same memory for all pieces: new pages cost as much as what is written to them
        unfold = wide(self.x[:0]).new_empty(most, self._sizes[1])
        product = unfold.new_empty(most, self.groups, p // self.groups, kh * kw * own)
        for i, j in pieces:
            a, b = self._factors(i, j, unfold)
            yield i, torch.matmul(b, a, out=product[: j - i]).view(j - i, p, kh, kw, own)

    def _as_formed(self, direction: Tensor, way: str) -> Tensor:
        """A tensor of the parameter's shape in the order of `_formed`."""
        return direction.view(self.shape).movedim(1, -1).contiguous() if way == "unfold" else direction.view(self.shape)

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

    def _forming_way(self) -> str:
        """The cheaper of them."""
        return cheapest(self._forming())

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

        def outer(of: Patches, i: int, j: int) -> Outer:
            a, b = of._factors(i, j)
            return Outer(a, b.transpose(-1, -2), self.shape)

        if other is self:
            return torch.cat([o.gram(o) for o in (outer(self, i, j) for i, j in pieces)])
        return torch.cat([outer(self, i, j).gram(outer(other, i, j)) for i, j in pieces])

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
            forming = self._forming_way()
            if forming == "convolve":
                return add_formed(self._formed(forming), plus, minus, signs)
            positive, negative = (torch.zeros_like(self._as_formed(total, forming)) for total in (plus, minus))
            norms = add_formed(self._formed(forming), positive, negative, signs)
            for total, formed in ((plus, positive), (minus, negative)):
                total.view(self.shape).add_(formed.movedim(-1, 1))
            return norms
        for total, part in signs.sums(plus, minus):
            total.add_(self._sum(part).view_as(total))
        return self._gram(self, way)

    def square_norms(self) -> Tensor:
        way = self._way(sums=False)
        return torch.cat([square(g) for _, g in self._formed(self._forming_way())]) if way == "form" else self._gram(self, way)

    def inner(self, other: Patches) -> Tensor:
        """(C,) float64: products with another's gradients, sample by sample."""
        way = self._way(False, other)
        if way == "form":
            forming = self._forming_way()
            return torch.cat([dot(g, h) for (_, g), (_, h) in zip(self._formed(forming), other._formed(forming), strict=True)])
        return self._gram(other, way)

    def products(self, directions: Sequence[Tensor]) -> Tensor:
        (t, _, size), k, cost = self._sizes, len(directions), costs_of(self.x)
        if cheapest({"form": min(self._forming().values()) + k * cost.element * size, "turn": k * cost.convolve_all * t * size}) == "form":
            forming = self._forming_way()
            return dots_formed(self._formed(forming), [self._as_formed(direction, forming) for direction in directions])
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
