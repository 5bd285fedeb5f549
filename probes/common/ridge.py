"""Ridge regression in closed form, streamed: sums over batches, then one Cholesky factor a penalty. Exact; no step size, no number of steps.

Inputs x are shared by several outputs y, and outputs by several sets of inputs. Two parts of the data are summed apart: one that weights are solved
from, and one that chooses each output's penalty; the weights are then solved again from both. With standardised inputs z = (x - mean) / std and
R = E z z^T,

    W(penalty) = (R + penalty I)^-1 E z (y - mean y)^T ,        error on the other part in closed form, from its sums alone.

A penalty that is large against the largest eigenvalue of R leaves the mean of y: what an output that x says nothing of should get.
Sums are float64; those of one batch are taken in the precision of x, about the first batch's mean, so that a large mean cancels nothing.
Outputs that are given by name are multiplied and solved one by one: no bit of one depends on the others.
Shapes: N rows, C channels of an output; B samples, T tokens, D channels of the input, P = k^2 D what a k x k convolution reads of them, in the order
(row, column, channel); E = D + 1 with a channel of ones, which tells padding from zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gsnr.probes.common import neighbours

PENALTIES = tuple(10.0**k for k in range(-6, 6))  # of inputs of unit variance; R has the trace P
SOLVES, CHOOSES = 0, 1  # the parts of the data


@dataclass(frozen=True, kw_only=True)
class Reader:
    """y = x @ weight + bias. weight (P,C), bias (C,), both float64. r2: share of E|y - mean|^2 that it explains on the part that chose the
    penalty, with the weights that were solved without it; NaN where y does not vary there."""

    weight_PC: Tensor
    bias_C: Tensor
    penalty: float
    r2: float

    def __call__(self, x_NP: Tensor) -> Tensor:
        return x_NP.to(self.weight_PC.dtype) @ self.weight_PC + self.bias_C


@dataclass(frozen=True)
class Given:
    """A batch of outputs about their origin, each (N,C) or (B,T,C), and the part of the data that it is of."""

    y: list[Tensor]
    part: int


class Outputs:
    """The sums of what is read. sizes: name -> C."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.n = [0, 0]
        self.y0_C: Tensor | None = None

    def add(self, y: Mapping[str, Tensor] | Tensor, part: int) -> Given:
        """Rows of each output, or of all side by side in their order; float32 or float64."""
        each = [y] if isinstance(y, Tensor) else [y[name] for name in self.sizes]
        if self.y0_C is None:
            self.y0_C = torch.cat([x.flatten(0, -2).mean(0) for x in each])
            ends = np.cumsum([0] + [x.shape[-1] for x in each]).tolist()
            self.blocks = [slice(*ends_of) for ends_of in pairwise(ends)]  # that are solved together
            self.y_C, self.yy_C = (torch.zeros(2, len(self.y0_C), dtype=torch.float64, device=self.y0_C.device) for _ in range(2))
        centred = [x - y0 for x, y0 in zip(each, self.y0_C.split([x.shape[-1] for x in each]), strict=True)]
        rows = [x.flatten(0, -2) for x in centred]
        self.n[part] += len(rows[0])
        self.y_C[part] += torch.cat([x.sum(0) for x in rows])
        self.yy_C[part] += torch.cat([torch.linalg.vector_norm(x, dim=0).double().square() for x in rows])
        return Given(centred, part)


@dataclass(frozen=True)
class _Sums:
    """Second moments of inputs and outputs about fixed origins."""

    n: int
    x_P: Tensor
    xx_PP: Tensor
    y_C: Tensor
    yy_C: Tensor
    xy_PC: Tensor

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.n + other.n,
            self.x_P + other.x_P,
            self.xx_PP + other.xx_PP,
            self.y_C + other.y_C,
            self.yy_C + other.yy_C,
            self.xy_PC + other.xy_PC,
        )

    def about(self, x_P: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E (x-a)(x-a)^T, E (x-a)(y-b)^T, E (y-b)^2 about points a, b."""
        mx, my = self.x_P / self.n, self.y_C / self.n
        xx = self.xx_PP / self.n - torch.outer(mx, x_P) - torch.outer(x_P, mx) + torch.outer(x_P, x_P)
        xy = self.xy_PC / self.n - torch.outer(mx, y_C) - torch.outer(x_P, my) + torch.outer(x_P, y_C)
        return xx, xy, self.yy_C / self.n - 2 * my * y_C + y_C.square()


class Ridge:
    """The sums of one set of inputs and of the outputs that are read from it. kernel: k of the convolution that reads them, 1 for a token alone."""

    def __init__(self, outputs: Outputs, kernel: int = 1) -> None:
        self.outputs, self.kernel = outputs, kernel
        self.x0_D: Tensor | None = None

    def add(self, x: Tensor, given: Given) -> None:
        """Rows (N,D) or hidden states (B,T,D), float32 or float64, of the batch that `Outputs.add` gave."""
        if self.x0_D is None:
            self.x0_D = x.flatten(0, -2).mean(0)
            inputs, columns = self.kernel**2 * (x.shape[-1] + 1), sum(self.outputs.sizes.values())
            self.xx_2FF, self.xy_2FC = (torch.zeros(2, inputs, n, dtype=torch.float64, device=x.device) for n in (inputs, columns))
        k, part = self.kernel, given.part
        with_ones = torch.cat([x - self.x0_D, x.new_ones(*x.shape[:-1], 1)], dim=-1)
        z = neighbours.beside(neighbours.by_rows(with_ones, k), k)
        neighbours.add_squares(self.xx_2FF[part], z, k)
        columns_of = self.xy_2FC[part].split([y.shape[-1] for y in given.y], dim=1)
        for y, xy in zip(given.y, columns_of, strict=True):
            neighbours.add_products(xy, z, neighbours.by_rows(y.to(z.dtype), k).flatten(1, 2), k)

    @property
    def _origin_aD(self) -> Tensor:
        """The mean of the first batch in every tap, less where some places have padding there."""
        assert self.x0_D is not None
        d, center = len(self.x0_D), self.kernel**2 // 2
        ones_a = self.xx_2FF[SOLVES].view(self.kernel**2, d + 1, self.kernel**2, d + 1)[:, d, :, d]
        ones_a = torch.cat([ones_a[: center + 1, center], ones_a[center, center + 1 :]])
        return torch.outer(ones_a / ones_a[center], self.x0_D.double())

    def _sums(self, part: int) -> _Sums:
        """Of one part, about the origin x0 s_a of tap a, with s_a the share of places that have no padding there. Where m is the channel of ones,
        x - x0 s = u + x0 (m - s)."""
        assert self.x0_D is not None
        taps, center, d = self.kernel**2, self.kernel**2 // 2, len(self.x0_D)
        xx = neighbours.mirrored(self.xx_2FF[part], self.kernel).view(taps, d + 1, taps, d + 1)
        xy, x0_D, out = self.xy_2FC[part].view(taps, d + 1, -1), self.x0_D.double(), self.outputs
        u_aDb, ones_ab = xx[:, :d, :, d], xx[:, d, :, d]
        share_a = ones_ab[:, center] / ones_ab[center, center]
        off_aDb = u_aDb - u_aDb[:, :, center, None] * share_a  # sum u (m - s)
        off_ab = ones_ab - torch.outer(ones_ab[:, center], share_a)
        total = xx[:, :d, :, :d] + torch.einsum("adb,e->adbe", off_aDb, x0_D)
        total += torch.einsum("bea,d->adbe", off_aDb, x0_D)
        total += torch.einsum("ab,d,e->adbe", off_ab, x0_D, x0_D)
        products = xy[:, :d] + torch.einsum("d,ac->adc", x0_D, xy[:, d] - share_a[:, None] * xy[center, d])
        flat = total.reshape(taps * d, taps * d), products.reshape(taps * d, -1)
        return _Sums(out.n[part], u_aDb[:, :, center].flatten(), flat[0], out.y_C[part], out.yy_C[part], flat[1])

    def solve(self) -> dict[str, Reader]:
        """output -> its reader. Raises ValueError where a part of the data is empty, or holds numbers that are not finite."""
        out = self.outputs
        if self.x0_D is None or out.y0_C is None or not all(out.n):
            raise ValueError("a ridge regression needs data to solve from and data to choose the penalty by")
        one, two = (self._sums(part) for part in (SOLVES, CHOOSES))
        both = one.plus(two)
        if not all(bool(torch.isfinite(x).all()) for x in (both.xx_PP, both.xy_PC, both.yy_C)):
            raise ValueError("a ridge regression of numbers that are not finite")
        systems = _System(one), _System(both)
        held_xx, held_xy, held_yy = two.about(one.x_P / one.n, one.y_C / one.n)
        error: dict[float, Tensor] = {}  # penalty -> (C,)
        for penalty in PENALTIES:
            if (factor := systems[0].factor(penalty)) is not None:
                each = [(c, systems[0].weights(factor, c)) for c in out.blocks]
                cross = torch.cat([(w_PC * (held_xx @ w_PC - 2 * held_xy[:, c])).sum(0) for c, w_PC in each])
                error[penalty] = held_yy + cross
        places = dict(zip(out.sizes, torch.arange(len(held_yy)).split(list(out.sizes.values())), strict=True))
        of_all = torch.stack([torch.stack([e_C[c].sum() for c in places.values()]) for e_C in error.values()]).T.tolist()
        of_output = {name: dict(zip(error, of_one, strict=True)) for name, of_one in zip(places, of_all, strict=True)}
        chosen = {name: min(errors, key=errors.__getitem__) for name, errors in of_output.items()}
        final = {least: systems[1].first_factor(least) for least in set(chosen.values())}
        mean_x = both.x_P / both.n + self._origin_aD.flatten()
        readers = {}
        for name, c in places.items():
            weight = systems[1].weights(final[chosen[name]], slice(int(c[0]), int(c[-1]) + 1))
            bias = both.y_C[c] / both.n + out.y0_C[c].double() - mean_x @ weight
            varies = float(held_yy[c].sum())
            r2 = 1 - of_output[name][chosen[name]] / varies if varies > 0 else float("nan")
            readers[name] = Reader(weight_PC=weight, bias_C=bias, penalty=chosen[name], r2=r2)
        return readers


class _System:
    """The normal equations of sums, in standardised inputs."""

    def __init__(self, sums: _Sums) -> None:
        xx, self.xy_PC, _ = sums.about(sums.x_P / sums.n, sums.y_C / sums.n)
        variance = xx.diagonal().clamp_min(0)
        scale_P = (variance + 1e-12 * variance.mean()).sqrt()  # an input that never varies keeps the weight 0
        self.scale_P1 = torch.where(scale_P > 0, scale_P, 1.0).unsqueeze(1)
        self.correlation_PP = xx / (self.scale_P1 * self.scale_P1.T)

    def factor(self, penalty: float) -> Tensor | None:
        """(P,P), lower triangular; None where the matrix is not positive definite, by rounding."""
        matrix = self.correlation_PP.clone()
        matrix.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed else factor

    def first_factor(self, least: float) -> Tensor:
        """That of the least penalty from `least` on that has one."""
        return next(factor for penalty in PENALTIES if penalty >= least and (factor := self.factor(penalty)) is not None)

    def weights(self, factor_PP: Tensor, columns: slice) -> Tensor:
        """(P,C) of some outputs."""
        return torch.cholesky_solve(self.xy_PC[:, columns] / self.scale_P1, factor_PP) / self.scale_P1
