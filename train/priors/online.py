"""A split whose VAE features are computed when they are read: the encoder in the loop (`gsnr prepare --features online`).

The cache then holds latents and the cropped pictures, uint8 (H,W,3), in place of features: at 512 pixels 0.75 MiB an image, not 8. What is read
is what would have been stored: float16, of the same layers, by the same VAE (by its hash). Shapes: N images, group (L,C,g,g).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gsnr.train.data.cache import IMAGE, OF_TEACHER, Over, Rows, Split
from gsnr.train.priors.features import encode, to_pixels
from gsnr.train.vaes import FrozenVAE

TOGETHER = 16  # images in one pass of the encoder


class OnlineSplit(Over):
    """See `gsnr.train.data.cache.Split`."""

    def __init__(self, stored: Split, vae: FrozenVAE) -> None:
        self.stored, self.vae = stored, vae
        self.header, self.size = stored.header, stored.size
        self.device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        """Raises ValueError for features that exceed float16."""
        made = tuple(name for name in columns if name in self.header.groups and name not in OF_TEACHER)
        read = tuple(name for name in columns if name not in made)
        rows = self.stored.take(index_N, tuple(dict.fromkeys((*read, IMAGE))) if made else read, view)
        return rows | self._features(rows[IMAGE] if IMAGE in columns else rows.pop(IMAGE), made) if made else rows

    def _features(self, images_NHWC: NDArray[np.uint8], groups: tuple[str, ...]) -> Rows:
        self.vae.model.to(self.device)
        chosen, grid = [layer for layer in self.vae.layers if layer.group in groups], self.header.groups[groups[0]][-1]
        parts: dict[str, list[torch.Tensor]] = {group: [] for group in groups}
        for start in range(0, len(images_NHWC), TOGETHER):
            pixels = to_pixels(images_NHWC[start : start + TOGETHER]).to(self.device)
            for group, f_BLCgg in encode(self.vae, pixels, chosen, grid, self.header.resampling)[2].items():
                parts[group].append(f_BLCgg.half().cpu())
        rows = {group: torch.cat(some) for group, some in parts.items()}
        for group, f_NLCgg in rows.items():
            if not torch.isfinite(f_NLCgg).all():
                raise ValueError(f"features of {group} exceed float16 in images of {self.header.data!r}; choose an alignment that leaves {group} out")
        return {group: f_NLCgg.numpy() for group, f_NLCgg in rows.items()}
