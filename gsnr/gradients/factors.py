"""Gradients as factors: linear layers (`Outer`) and embeddings (`Rows`), whose products are formed only where that is cheaper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gsnr.gradients.base import PerSample, Signs, add_formed, cheapest, dot, dots_formed, slices, square, wide
from gsnr.gradients.costs import costs_of


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

    def vanishes(self, i: int) -> bool:
        return not (self.a[i].any() and self.b[i].any())

    def _way(self, sums: bool, other: Outer | None = None) -> str:
        """ "form" gradients, or take the "gram" matrix over tokens, for square norms or products with another's. sums: their sum is asked for
        as well, which a product over all tokens would yield at what forming costs."""
        (_, _, t, d), p = self.a.shape, self.b.shape[-1]
        others = other.a.shape[2] if other is not None else 0
        formed = (0 if sums else t + others) * d * p
        return cheapest({"form": formed + costs_of(self.a).element * d * p, "gram": t * (others or t) * (d + p)})

    def _formed(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, gradients (k, G, p, d)), a few samples at a time; each is to be used up before the next is asked for."""
        pieces = list(slices(self.a, self.shape))
        if self.a.is_cuda or self.a.shape[1] > 1 or len(pieces) < self.samples:
            for i, j in pieces:
                yield i, wide(self.b[i:j]).transpose(-1, -2) @ wide(self.a[i:j])
            return
        out = None
        for i in range(self.samples):  # one large product into the same memory, which stays in cache
            out = torch.mm(wide(self.b[i, 0]).T, wide(self.a[i, 0]), out=out)
            yield i, out[None, None]

    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        if self._way(sums=True) == "gram":
            for total, part in signs.sums(plus, minus):
                a, b = (wide(x[part].transpose(0, 1).flatten(1, 2)) for x in (self.a, self.b))  # (G, C T, .)
                if a.shape[0] == 1:
                    total.view(b.shape[-1], -1).addmm_(b[0].T, a[0])
                else:
                    total.view(a.shape[0], b.shape[-1], -1).baddbmm_(b.transpose(1, 2), a)
            return self.gram(self)
        return add_formed(self._formed(), plus, minus, signs)

    def gram(self, other: Outer) -> Tensor:
        """<sum_t b_t a_t^T, sum_s b'_s a'_s^T> = sum_ts (a_t . a'_s) (b_t . b'_s), per sample and summed over groups."""
        gram_a = wide(self.a) @ wide(other.a).transpose(-1, -2)
        gram_b = wide(self.b) @ wide(other.b).transpose(-1, -2)
        return dot(gram_a, gram_b)

    def square_norms(self) -> Tensor:
        if self._way(sums=False) == "gram":
            return self.gram(self)
        return torch.cat([square(g) for _, g in self._formed()])

    def inner(self, other: Outer) -> Tensor:
        """(C,) float64: products with another's gradients, sample by sample."""
        if self._way(False, other) == "gram":
            return self.gram(other)
        return torch.cat([dot(g, h) for (_, g), (_, h) in zip(self._formed(), other._formed(), strict=True)])

    def products(self, directions: Sequence[Tensor]) -> Tensor:
        t, k, element = self.a.shape[2], len(directions), costs_of(self.a).element
        if cheapest({"form": t + k * element, "turn": k * t}) == "form":
            return dots_formed(self._formed(), directions)
        return super().products(directions)

    def dots(self, direction: Tensor) -> Tensor:
        groups, p = self.b.shape[1], self.b.shape[-1]
        matrix = direction.reshape(groups, p, -1)
        narrow, wide_side = (self.b, self.a) if p < self.a.shape[-1] else (self.a, self.b)
        matrix = matrix.transpose(1, 2) if narrow is self.b else matrix
        # the wider factor times the matrix, then the narrower one; without groups as one large product
        turned = wide(wide_side) @ (matrix if groups > 1 else matrix[0])
        return dot(turned, wide(narrow))

    def dense(self) -> Tensor:
        return (wide(self.b).transpose(-1, -2) @ wide(self.a)).reshape(-1, *self.shape)

    def take(self, rows: Tensor) -> PerSample:
        return Outer(self.a[rows], self.b[rows], self.shape)

    def pooled(self, draws: int) -> PerSample:
        a, b = (x.unflatten(0, (-1, draws)).transpose(1, 2).flatten(2, 3) for x in (self.a, self.b))
        return Outer(a, b / draws, self.shape)

    def double(self) -> PerSample:
        return Outer(self.a.double(), self.b.double(), self.shape)

    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True)
class Rows(Factored):
    """index_CT int64, b_CTp; the parameter's shape is (number of rows, p)."""

    index: Tensor
    b: Tensor
    shape: torch.Size

    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        for total, part in signs.sums(plus, minus):
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
        return dot(direction[self.index], wide(self.b))

    def dense(self) -> Tensor:
        made = wide(self.b).new_zeros(self.samples, *self.shape)
        return made.scatter_add_(1, self.index[:, :, None].expand(-1, -1, self.shape[1]), wide(self.b))

    def take(self, rows: Tensor) -> PerSample:
        return Rows(self.index[rows], self.b[rows], self.shape)

    def pooled(self, draws: int) -> PerSample:
        index, b = (x.unflatten(0, (-1, draws)).flatten(1, 2) for x in (self.index, self.b))
        return Rows(index, b / draws, self.shape)

    def double(self) -> PerSample:
        return Rows(self.index, self.b.double(), self.shape)

    def nbytes(self) -> int:
        return self.index.nbytes + self.b.nbytes
