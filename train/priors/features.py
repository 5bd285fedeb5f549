"""Features of every layer of chosen groups, on the token grid, and the latent's moments: all from one encoder pass.

Shapes: B images, (H, W) pixels, (h, w) latent grid, g tokens a side, L layers of a group, C their channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gsnr.train.priors.layers import Layer
from gsnr.train.vaes import FrozenVAE

# How a feature map is brought to the token grid: AHPA Sec. 4.2 averages (adaptive), its Appendix A is bilinear; they differ for 64 -> 16.
RESAMPLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "adaptive": lambda f_BCHW, grid: F.adaptive_avg_pool2d(f_BCHW, grid),
    "bilinear": lambda f_BCHW, grid: F.interpolate(f_BCHW, (grid, grid), mode="bilinear", align_corners=False),
}


def to_pixels(images_NHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 (N,H,W,3) -> float32 (N,3,H,W) in [-1, 1]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@torch.no_grad()
def encode(
    vae: FrozenVAE, images_BCHW: Tensor, chosen: list[Layer], grid: int, resampling: str = "adaptive"
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(mean (B,C,h,w), std (B,C,h,w), {group: (B,L,C,g,g)}) of images in [-1, 1]; layers of a group in encoder order. std is 0 without a posterior.

    Raises ValueError for an unknown resampling.
    """
    if resampling not in RESAMPLINGS:
        raise ValueError(f"resampling {resampling!r} does not exist; choose from {', '.join(RESAMPLINGS)}")
    resample = RESAMPLINGS[resampling]
    collected: dict[str, list[Tensor]] = {layer.group: [] for layer in chosen}
    hooks = [
        vae.encoder.get_submodule(layer.name).register_forward_hook(
            lambda _module, _inputs, output, group=layer.group: collected[group].append(resample(output, grid))
        )
        for layer in chosen
    ]
    try:
        mean, std = vae.encode(images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return mean, torch.zeros_like(mean) if std is None else std, {group: torch.stack(maps, dim=1) for group, maps in collected.items()}
