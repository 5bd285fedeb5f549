"""How well readers predict several things, and how well the train mean does, on held-out images.

Shapes: B images, T tokens, P channels of all things side by side, K things.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.probes.common.ridge import Reader
from gsnr.probes.common.vertex import Interval, interval

Array = NDArray[np.float64]


class Joined:
    """Readers of one hidden state, side by side."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.weight_DP = torch.cat([reader.weight_PC for reader in readers.values()], dim=1)
        self.bias_P = torch.cat([reader.bias_C for reader in readers.values()])
        self.origin_D: Tensor | None = None

    def __call__(self, h_BTD: Tensor) -> Tensor:
        """(B,T,P) in the precision of h: what all readers make of it. About the first batch's mean, so that a large one cancels nothing."""
        if self.origin_D is None:
            self.origin_D = h_BTD.mean((0, 1))
            self.there_P = (self.origin_D.double() @ self.weight_DP + self.bias_P).to(h_BTD.dtype)
            self.narrow_DP = self.weight_DP.to(h_BTD.dtype)
        rows = (h_BTD - self.origin_D).flatten(0, 1)
        return torch.addmm(self.there_P, rows, self.narrow_DP).unflatten(0, h_BTD.shape[:2])


class Readings:
    """Sums per image. means: thing -> (T,C), its mean over train images, token by token.

    R^2 is the share of the variance about that mean. What position alone tells counts for nothing, so that a reader of other images' things gets 0;
    about one mean for all tokens it would get the share of variance that lies between positions.
    """

    def __init__(self, means: Mapping[str, Tensor]) -> None:
        self.names, self.sizes = list(means), [mean_TC.shape[1] for mean_TC in means.values()]
        self.mean_TP = torch.cat(list(means.values()), dim=1).float()
        self.mean_P = self.mean_TP.mean(0)
        self.runs = [(size, len(list(run)) * size) for size, run in groupby(self.sizes)]  # things of one size lie side by side
        self.total_BK: list[Array] = []
        self.constant_BK: list[Array] = []
        self.residual_BK: dict[int, list[Array]] = {}
        self.cosine_BK: dict[int, list[Array]] = {}

    def _sums(self, x_xP: Tensor) -> Tensor:
        """(...,K): sums over the channels of each thing."""
        runs = x_xP.split([channels for _, channels in self.runs], dim=-1)
        return torch.cat([x.unflatten(-1, (-1, size)).sum(-1) for (size, _), x in zip(self.runs, runs, strict=True)], dim=-1)

    def begin(self, y_BTP: Tensor) -> None:
        """A batch of what is to be read."""
        self.y_BTP = y_BTP
        self.norm_BTK = _norm(self._sums(y_BTP.square()))
        self.total_BK.append(_array(self._sums((y_BTP - self.mean_TP).square()).sum(1)))
        cosine = self._sums(y_BTP * self.mean_P) / (self.norm_BTK * _norm(self._sums(self.mean_P.square())))
        self.constant_BK.append(_array(cosine.mean(1)))

    def add(self, block: int, read_BTP: Tensor) -> None:
        """What the readers of a block make of that batch."""
        cosine = self._sums(read_BTP * self.y_BTP) / (self.norm_BTK * _norm(self._sums(read_BTP.square())))
        self.cosine_BK.setdefault(block, []).append(_array(cosine.mean(1)))
        self.residual_BK.setdefault(block, []).append(_array(self._sums((self.y_BTP - read_BTP).square()).sum(1)))

    def constant_cosine(self) -> dict[str, Interval]:
        """thing -> cosine that one vector reaches, its mean over train images and tokens."""
        return dict(zip(self.names, map(_mean, np.concatenate(self.constant_BK).T), strict=True))

    def measures(self, block: int) -> dict[str, dict[str, Interval]]:
        """thing -> metric -> value and 95 % jackknife interval over images. R^2 is nan of what does not vary."""
        total_BK, residual_BK = np.concatenate(self.total_BK), np.concatenate(self.residual_BK[block])
        with np.errstate(invalid="ignore", divide="ignore"):
            r2_K = 1 - residual_BK.sum(0) / total_BK.sum(0)
            left_BK = 1 - (residual_BK.sum(0) - residual_BK) / (total_BK.sum(0) - total_BK)
        cosine_BK = np.concatenate(self.cosine_BK[block])
        return {
            name: {"readable_r2": interval(float(r2_K[k]), left_BK[:, k]), "readable_cosine": _mean(cosine_BK[:, k])}
            for k, name in enumerate(self.names)
        }


def _norm(square: Tensor) -> Tensor:
    """Its root; of a zero vector so small that a product over it is 0."""
    return square.sqrt().clamp_min(torch.finfo(square.dtype).tiny ** 0.25)


def _array(x: Tensor) -> Array:
    return x.double().cpu().numpy()


def _mean(x_B: Array) -> Interval:
    return interval(float(x_B.mean()), (x_B.sum() - x_B) / (len(x_B) - 1))
