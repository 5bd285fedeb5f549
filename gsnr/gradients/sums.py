"""A parameter used more than once: the sum of its uses' gradients, whatever their forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gsnr.gradients.base import PerSample, Signs, Zero, dot, wide
from gsnr.gradients.factors import Outer, Rows
from gsnr.gradients.patches import Patches


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

    def accumulate(self, plus: Tensor, minus: Tensor, signs: Signs) -> Tensor:
        return torch.stack([part.accumulate(plus, minus, signs) for part in self.parts]).sum(0) + self._cross()

    def square_norms(self) -> Tensor:
        return torch.stack([part.square_norms() for part in self.parts]).sum(0) + self._cross()

    def dots(self, direction: Tensor) -> Tensor:
        return torch.stack([part.dots(direction) for part in self.parts]).sum(0)

    def products(self, directions: Sequence[Tensor]) -> Tensor:
        return torch.stack([part.products(directions) for part in self.parts]).sum(0)

    def dense(self) -> Tensor:
        return torch.stack([wide(part.dense()) for part in self.parts]).sum(0)

    def take(self, rows: Tensor) -> PerSample:
        return Sum(tuple(part.take(rows) for part in self.parts))

    def pooled(self, draws: int) -> PerSample:
        return Sum(tuple(part.pooled(draws) for part in self.parts))

    def double(self) -> PerSample:
        return Sum(tuple(part.double() for part in self.parts))

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
        return x.inner(y)
    if isinstance(x, Outer) and isinstance(y, Outer):
        return x.inner(y)
    if isinstance(x, Rows) and isinstance(y, Rows):
        return x.inner(y)
    if isinstance(x, Rows) and isinstance(y, Outer):
        return x.inner_outer(y)
    return dot(wide(x.dense()), wide(y.dense()))
