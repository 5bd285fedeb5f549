"""The alignment target of AHPA as pure functions: regroup layers, mix them, scale, concatenate (AHPA Eq. 2-4); the entropy of a mixture.

Shapes: B samples, L layers, C channels, (g,g) token grid, T = g*g tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gsnr.train.priors.layers import DEEP, MID


def mid_deep(g3_BLCgg: Tensor, g4_BLCgg: Tensor, mid_layers: int) -> dict[str, Tensor]:
    """{"mid": (B,L,C,g,g), "deep": ...}: the layers of G3 and G4 in encoder order, the first `mid_layers` of them mid."""
    if g3_BLCgg.shape[1] == mid_layers:
        return {MID: g3_BLCgg, DEEP: g4_BLCgg}
    both = torch.cat([g3_BLCgg, g4_BLCgg], dim=1)
    return {MID: both[:, :mid_layers], DEEP: both[:, mid_layers:]}


def mix(features: dict[str, Tensor], weights: dict[str, Tensor], unit: bool = False) -> Tensor:
    """Y_t (B,T, all groups' C together) float32 = concat over groups of beta_g * sum_l alpha_{g,l} F_{g,l}.

    weights: group -> alpha (B,L), and "beta" (B, groups) in the order of `features`, which is the order of concatenation.
    unit: the sum over layers is made a unit vector at each token before beta scales it.
    """
    parts = []
    for column, (group, f_BLCgg) in enumerate(features.items()):
        mixed = torch.einsum("bl,blchw->bhwc", weights[group].float(), f_BLCgg.float())
        mixed = F.normalize(mixed, dim=-1) if unit else mixed
        parts.append(weights["beta"][:, column].float().view(-1, 1, 1, 1) * mixed)
    return torch.cat(parts, dim=-1).flatten(1, 2)


def entropy(weights: dict[str, Tensor]) -> Tensor:
    """(B,) in nats: H of the weights beta_g alpha_{g,l} over the layers of all groups.

    It is H(beta) + sum_g beta_g H(alpha_g). weights: as of `mix`, alphas and beta summing to 1. A weight below float32's
    normal numbers counts 0, with a finite gradient.
    """
    groups = [name for name in weights if name != "beta"]
    joint_BK = torch.cat([weights["beta"][:, g : g + 1] * weights[group] for g, group in enumerate(groups)], dim=-1)
    return -(joint_BK * joint_BK.clamp_min(torch.finfo(joint_BK.dtype).tiny).log()).sum(-1)
