"""Squared distances between two sets of features, block by block in float64: an array of all pairs is never made.

Balls compare distances rounded to float32: so a distance that is the radius equals it, in whichever block and order either was summed.

Shapes: N, M feature vectors of width D; a block is (A,B).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gsnr.train.metrics import Array, Rows

ROWS, COLUMNS = 2000, 10000  # of a block: 160 MB


def _on_device(features_ND: Rows) -> Tensor:
    return torch.from_numpy(features_ND).to("cuda" if torch.cuda.is_available() else "cpu")


def blocks(x_ND: Rows, y_MD: Rows) -> Iterator[tuple[slice, Iterator[tuple[slice, Tensor]]]]:
    """(rows, its blocks): for each run of rows of x the columns of y and ||x_i - y_j||^2 (A,B), in their order."""
    x, y = _on_device(x_ND), _on_device(y_MD)
    for first in range(0, len(x), ROWS):
        rows = slice(first, min(first + ROWS, len(x)))
        yield rows, _across(x[rows].double(), y)


def _across(x_AD: Tensor, y_MD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for first in range(0, len(y_MD), COLUMNS):
        columns = slice(first, min(first + COLUMNS, len(y_MD)))
        y_BD = y_MD[columns].double()
        d_AB = torch.addmm(y_BD.square().sum(1), x_AD, y_BD.T, alpha=-2.0).add_(x_AD.square().sum(1)[:, None])
        yield columns, d_AB.clamp_(min=0.0)


def radii(x_ND: Rows, k: int) -> Rows:
    """(N,): squared distance from each to its k-th nearest among the others. Raises ValueError where there are no k others."""
    if len(x_ND) <= k:
        raise ValueError(f"{len(x_ND)} images: a ball around one reaches its neighbour number {k}, so at least {k + 1} are needed")
    found = []
    for _, across in blocks(x_ND, x_ND):
        nearest: Tensor | None = None
        for _, d_AB in across:
            here = d_AB.topk(min(k + 1, d_AB.shape[1]), dim=1, largest=False).values
            nearest = here if nearest is None else torch.cat([nearest, here], 1).topk(k + 1, dim=1, largest=False).values
        assert nearest is not None
        found.append(nearest.max(1).values.float().cpu())
    return torch.cat(found).numpy()


def balls_around(x_ND: Rows, centres_MD: Rows, radius_M: Rows, strict: bool) -> tuple[Array, Array]:
    """((N,), (M,)): in how many balls each point lies, and how many points each ball has. strict: `<` in place of `<=`."""
    radius = torch.from_numpy(radius_M).to("cuda" if torch.cuda.is_available() else "cpu")
    of_point, of_ball = torch.zeros(len(x_ND), dtype=torch.float64), torch.zeros(len(centres_MD), dtype=torch.float64)
    for rows, across in blocks(x_ND, centres_MD):
        for columns, d_AB in across:
            near_AB = d_AB.float()
            inside = near_AB < radius[columns] if strict else near_AB <= radius[columns]
            of_point[rows] += inside.sum(1).cpu()
            of_ball[columns] += inside.sum(0).cpu()
    return of_point.numpy(), of_ball.numpy()
