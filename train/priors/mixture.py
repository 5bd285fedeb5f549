"""The alignment target of AHPA as pure functions: regroup layers, mix them, scale, concatenate (AHPA Eq. 2-4).

Shapes: B samples, L layers, C channels, (g,g) token grid, T = g*g tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.data.batches import Batch

MID, DEEP = "mid", "deep"  # the concatenation order is mid first, always


def mid_deep(batch: Batch, split: str) -> dict[str, Tensor]:
    """{"mid": (B,L,C,g,g), "deep": ...}: the cached layers of G3 and G4 in encoder order, divided as `split` says ("4/4", ...)."""
    mid_layers = int(split.split("/")[0])
    if batch["G3"].shape[1] == mid_layers:
        return {MID: batch["G3"], DEEP: batch["G4"]}
    both = torch.cat([batch["G3"], batch["G4"]], dim=1)
    return {MID: both[:, :mid_layers], DEEP: both[:, mid_layers:]}


def mix(features: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
    """Y_t (B,T,C*groups) float32 = concat over groups of beta_g * sum_l alpha_{g,l} F_{g,l}.

    weights: group -> alpha (B,L), and "beta" (B, groups) in the order of `features`. No gradient reaches the features.
    """
    parts = []
    for column, (group, f_BLCgg) in enumerate(features.items()):
        mixed = torch.einsum("bl,blchw->bhwc", weights[group].float(), f_BLCgg.detach().float())
        parts.append(weights["beta"][:, column].float().view(-1, 1, 1, 1) * mixed)
    return torch.cat(parts, dim=-1).flatten(1, 2)
