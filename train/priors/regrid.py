"""A split whose feature groups are brought from their token grid to the model's, bilinearly (`--data.regrid bilinear`).

Off unless it is asked for: a target of another grid saw other pixels in each token. Shapes: N images, group (L,C,g,g).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gsnr.train.data.cache import Header, Over, Rows, Split


def on_grid(header: Header, grid: int) -> Header:
    """The same with all groups on a grid of that many tokens a side."""
    return replace(header, groups=header.groups | {group: (*shape[:2], grid, grid) for group, shape in header.maps.items()})


class RegriddedSplit(Over):
    """See `gsnr.train.data.cache.Split`."""

    def __init__(self, stored: Split, grid: int) -> None:
        self.stored, self.grid = stored, grid
        self.header, self.size = on_grid(stored.header, grid), stored.size

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        rows = self.stored.take(index_N, columns, view)
        return {name: self._resized(values) if name in self.header.maps else values for name, values in rows.items()}

    def _resized(self, f_NLCgg: NDArray[np.float16]) -> NDArray[np.float16]:
        f = torch.from_numpy(f_NLCgg)
        resized = F.interpolate(f.flatten(0, 1).float(), (self.grid, self.grid), mode="bilinear", align_corners=False)
        return resized.unflatten(0, f.shape[:2]).half().numpy()
