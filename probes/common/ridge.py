"""Ridge regression in closed form, streamed: sums over batches, then one Cholesky factor a penalty. Exact; no step size, no number of steps.

Rows x (N,P) are shared by several outputs y (N,C). Two parts of the data are summed apart: one that weights are solved from, and one that
chooses each output's penalty; the weights are then solved again from both. With standardised inputs z = (x - mean) / std and R = E z z^T,

    W(penalty) = (R + penalty I)^-1 E z (y - mean y)^T ,        error on the other part in closed form, from its sums alone.

A penalty that is large against the largest eigenvalue of R leaves the mean of y: what an output that x says nothing of should get.
Sums are float64; those of one batch are taken in the precision of x, about the first batch's mean, so that a large mean cancels nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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


class _Sums:
    """Second moments about a fixed origin."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.n = 0
        self.x_P, self.xx_PP = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in ((inputs,), (inputs, inputs)))
        self.y_C, self.yy_C = (torch.zeros(outputs, dtype=torch.float64, device=device) for _ in range(2))
        self.xy_PC = torch.zeros(inputs, outputs, dtype=torch.float64, device=device)

    def add(self, x_NP: Tensor, y_NC: Tensor) -> None:
        self.n += len(x_NP)
        self.x_P += x_NP.sum(0)
        self.y_C += y_NC.sum(0)
        self.xx_PP += x_NP.T @ x_NP
        self.xy_PC += x_NP.T @ y_NC
        self.yy_C += y_NC.square().sum(0)

    def plus(self, other: _Sums) -> _Sums:
        both = _Sums(0, 0, self.x_P.device)
        both.n = self.n + other.n
        for name in ("x_P", "y_C", "xx_PP", "xy_PC", "yy_C"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def about(self, x_P: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E (x-a)(x-a)^T, E (x-a)(y-b)^T, E (y-b)^2 about points a, b."""
        mx, my = self.x_P / self.n, self.y_C / self.n
        xx = self.xx_PP / self.n - torch.outer(mx, x_P) - torch.outer(x_P, mx) + torch.outer(x_P, x_P)
        xy = self.xy_PC / self.n - torch.outer(mx, y_C) - torch.outer(x_P, my) + torch.outer(x_P, y_C)
        return xx, xy, self.yy_C / self.n - 2 * my * y_C + y_C.square()


class Ridge:
    """The sums of one set of inputs and of the outputs that are read from it. outputs: name -> C."""

    def __init__(self, outputs: Mapping[str, int]) -> None:
        self.outputs = dict(outputs)
        self.parts: tuple[_Sums, _Sums] | None = None

    def add(self, x_NP: Tensor, y: Mapping[str, Tensor] | Tensor, part: int) -> None:
        """Rows (N,P) and (N,C) of each output (or of all side by side, in their order), float32 or float64, for part SOLVES or CHOOSES."""
        y_NC = (y if isinstance(y, Tensor) else torch.cat([y[name] for name in self.outputs], dim=1)).to(x_NP.dtype)
        if self.parts is None:
            self.x0_P, self.y0_C = x_NP.mean(0), y_NC.mean(0)
            self.parts = tuple(_Sums(x_NP.shape[1], y_NC.shape[1], x_NP.device) for _ in range(2))  # type: ignore[assignment]
        assert self.parts is not None
        self.parts[part].add(x_NP - self.x0_P, y_NC - self.y0_C)

    def solve(self) -> dict[str, Reader]:
        """output -> its reader. Raises ValueError where a part of the data is empty, or holds numbers that are not finite."""
        if self.parts is None or not all(part.n for part in self.parts):
            raise ValueError("a ridge regression needs data to solve from and data to choose the penalty by")
        one, two = self.parts
        both = one.plus(two)
        if not all(bool(torch.isfinite(x).all()) for x in (both.xx_PP, both.xy_PC, both.yy_C)):
            raise ValueError("a ridge regression of numbers that are not finite")
        columns = dict(zip(self.outputs, torch.arange(sum(self.outputs.values())).split(list(self.outputs.values())), strict=True))
        error: dict[float, Tensor] = {}  # penalty -> (C,)
        held_xx, held_xy, held_yy = two.about(one.x_P / one.n, one.y_C / one.n)
        system = _System(one)
        for penalty in PENALTIES:
            if (w_PC := system.weights(penalty)) is not None:
                error[penalty] = held_yy - 2 * (w_PC * held_xy).sum(0) + (w_PC * (held_xx @ w_PC)).sum(0)
        of_output = {name: {penalty: float(e_C[c].sum()) for penalty, e_C in error.items()} for name, c in columns.items()}
        chosen = {name: min(errors, key=errors.__getitem__) for name, errors in of_output.items()}
        system = _System(both)
        final = {least: system.first_weights(least) for least in set(chosen.values())}
        readers = {}
        for name, c in columns.items():
            weight = final[chosen[name]][:, c]
            mean_y = both.y_C[c] / both.n + self.y0_C[c].double()
            bias = mean_y - (both.x_P / both.n + self.x0_P.double()) @ weight
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

    def weights(self, penalty: float) -> Tensor | None:
        """(P,C); None where the matrix is not positive definite, by rounding."""
        matrix = self.correlation_PP.clone()
        matrix.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return None if failed else torch.cholesky_solve(self.xy_PC / self.scale_P1, factor) / self.scale_P1

    def first_weights(self, least: float) -> Tensor:
        """(P,C) of the least penalty from `least` on that has them."""
        return next(w_PC for penalty in PENALTIES if penalty >= least and (w_PC := self.weights(penalty)) is not None)
