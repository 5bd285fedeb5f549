"""Is a target easy? What a constant vector reaches of it.

A cosine loss can be lowered by a vector that says nothing about the image: the best constant reaches the cosine ||mean of f/||f||||. A target is
easy where that is nearly all that the projector reaches (`gsnr.table.EASY`).
Shapes: N images, T tokens, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.intervals import NORMAL_95

Array = NDArray[np.float64]


class Easiness:
    """Sums per image, from which each measure and its delete-one jackknife follow."""

    def __init__(self) -> None:
        self.parts: list[tuple[Array, Array, Array, Array]] = []
        self.reached: list[Array] = []

    def add(self, f_NTC: Tensor, projected_NTC: Tensor | None = None) -> None:
        """Targets, and what a projector makes of the hidden states they belong to."""
        f = f_NTC.double()
        norm = f.norm(dim=-1)
        unit = f / norm.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-1)
        self.parts.append(tuple(x.cpu().numpy() for x in (unit.mean(1), f.mean(1), norm.mean(1), norm.square().mean(1))))  # type: ignore[arg-type]
        if projected_NTC is not None:
            self.reached.append(torch.cosine_similarity(projected_NTC.double(), f, dim=-1).mean(1).cpu().numpy())

    def measures(self) -> dict[str, tuple[float, float, float]]:
        """metric -> value and 95 % interval over images: constant_cosine, norm, mean_share; with a projector projector_cosine and constant_share,
        the first over it."""
        unit_NC, mean_NC, norm_N, square_N = (np.concatenate(columns) for columns in zip(*self.parts, strict=True))
        n = len(norm_N)

        def left_out(x: Array) -> Array:
            """Means without each image in turn."""
            return (x.sum(0) - x) / (n - 1)

        constant = np.linalg.norm(unit_NC.mean(0)), np.linalg.norm(left_out(unit_NC), axis=1)
        each = {
            "constant_cosine": constant,
            "norm": (norm_N.mean(), left_out(norm_N)),
            "mean_share": (np.square(mean_NC.mean(0)).sum() / square_N.mean(), np.square(left_out(mean_NC)).sum(1) / left_out(square_N)),
        }
        if self.reached:
            cosine_N = np.concatenate(self.reached)
            each["projector_cosine"] = (cosine_N.mean(), left_out(cosine_N))
            each["constant_share"] = (constant[0] / cosine_N.mean(), constant[1] / left_out(cosine_N))
        found = {}
        for name, (value, others) in each.items():
            half = NORMAL_95 * float(np.sqrt((n - 1) * np.var(others)))
            found[name] = (float(value), float(value) - half, float(value) + half)
        return found

    def rows(self, key: dict[str, Any]) -> list[dict[str, Any]]:
        """One row a measure. key: the other columns of kind "metrics"."""
        return [key | {"metric": name, "value": v, "low": low, "high": high} for name, (v, low, high) in self.measures().items()]
