"""The alignment target of AHPA as pure functions: regroup layers, mix them, scale, concatenate (AHPA Eq. 2-4).

Shapes: B samples, L layers, C channels, (g,g) token grid, T = g*g tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsnr.train.priors.layers import DEEP, MID


def mid_deep(g3_BLCgg: Tensor, g4_BLCgg: Tensor, mid_layers: int) -> dict[str, Tensor]:
    """{"mid": (B,L,C,g,g), "deep": ...}: the layers of G3 and G4 in encoder order, the first `mid_layers` of them mid."""
    if g3_BLCgg.shape[1] == mid_layers:
        return {MID: g3_BLCgg, DEEP: g4_BLCgg}
    both = torch.cat([g3_BLCgg, g4_BLCgg], dim=1)
    return {MID: both[:, :mid_layers], DEEP: both[:, mid_layers:]}


def mix(features: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
    """Y_t (B,T, all groups' C together) float32 = concat over groups of beta_g * sum_l alpha_{g,l} F_{g,l}.

    weights: group -> alpha (B,L), and "beta" (B, groups) in the order of `features`, which is the order of concatenation.
    """
    parts = []
    for column, (group, f_BLCgg) in enumerate(features.items()):
        mixed = torch.einsum("bl,blchw->bhwc", weights[group].float(), f_BLCgg.float())
        parts.append(weights["beta"][:, column].float().view(-1, 1, 1, 1) * mixed)
    return torch.cat(parts, dim=-1).flatten(1, 2)
