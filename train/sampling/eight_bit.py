"""Decoded pixels -> uint8. The projects do it in three ways, which differ by up to one level, enough to move an FID in its second digit after the point.

    repa     255 (x + 1) / 2, truncated (REPA, iREPA, REG)
    sit      127.5 x + 128, truncated (DiT, SiT)
    round    255 (x + 1) / 2, rounded (JiT)

Shapes: B images, x (B,3,H,W) in [-1, 1]; what lies outside is clamped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gsnr.commandline import choose

RULES = ("repa", "sit", "round")


def to_uint8(pixels_BCHW: Tensor, rule: str) -> NDArray[np.uint8]:
    """(B,H,W,3). Raises ValueError for an unknown rule."""
    choose("--uint8", rule, RULES)
    if rule == "round":
        levels = ((pixels_BCHW.clamp(-1, 1) + 1) * 127.5).round()
    elif rule == "sit":
        levels = (127.5 * pixels_BCHW + 128).clamp(0, 255)
    else:
        levels = (255 * ((pixels_BCHW + 1) / 2)).clamp(0, 255)
    found: NDArray[np.uint8] = levels.byte().permute(0, 2, 3, 1).cpu().numpy()
    return found
