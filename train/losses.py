"""Alignment losses: one value per sample, in float32 whatever the precision of the inputs. Shapes: B samples, T tokens, C channels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 0.05  # where smooth L1 turns from square to line; SRA's and SRA 2's


def full_precision(device: torch.device) -> AbstractContextManager:
    """No autocast; the meta device, on which costs are counted, knows none."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def cosine(prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """(B,): 1 - mean over tokens of the cosine over channels (AHPA Eq. 5)."""
    return 1 - F.cosine_similarity(prediction_BTC.float(), target_BTC.float(), dim=-1).mean(dim=1)


def residual_cosine(prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """(B,): mean over tokens of w_k (1 - cos_k); w_k, without gradient, is 1 - cos_k over its mean over the sample's tokens, between 1/4 and 4, and
    again over its mean (RARE, arXiv 2609.34732; it subtracts 1, and means over tokens of a sample here)."""
    residual_BT = 1 - F.cosine_similarity(prediction_BTC.float(), target_BTC.float(), dim=-1)
    eta_BT = residual_BT.detach().clamp_min(torch.finfo(torch.float32).tiny)  # all of them 0: all weights 1
    w_BT = (eta_BT / eta_BT.mean(1, keepdim=True)).clamp(1 / 4, 4)
    return (w_BT / w_BT.mean(1, keepdim=True) * residual_BT).mean(1)


def token_axis_cosine(prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """(B,): 1 - mean over channels of the cosine over tokens: what SRA's code computes, whose call takes its function's default axis."""
    return 1 - F.cosine_similarity(prediction_BTC.float(), target_BTC.float(), dim=1).mean(dim=1)


def similarities(tokens_BTC: Tensor) -> Tensor:
    """(B,T,T) float32: cosines between the tokens of a sample."""
    with full_precision(tokens_BTC.device):
        unit_BTC = F.normalize(tokens_BTC.float(), dim=-1)
        return unit_BTC @ unit_BTC.transpose(1, 2)


def gram(prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """(B,): mean over pairs of tokens of the squared difference of their cosines (sREPA, arXiv 2605.16949)."""
    return (similarities(prediction_BTC) - similarities(target_BTC)).square().mean(dim=(1, 2))


def attention_logits(qkv_BTE: Tensor, heads: int, first: int) -> Tensor:
    """(B,H,T,T) float32: of queries against keys, over the root of a head's width; of the first H heads. qkv: queries, keys and values side by
    side, each head by head."""
    with full_precision(qkv_BTE.device):
        q_BHTd, k_BHTd, _ = qkv_BTE.float().unflatten(-1, (3, heads, -1))[..., :first, :].permute(2, 0, 3, 1, 4)
        return q_BHTd @ k_BHTd.transpose(2, 3) * q_BHTd.shape[-1] ** -0.5


def attention_cross_entropy(qkv_BTE: Tensor, heads: int, target_BTF: Tensor, target_heads: int) -> Tensor:
    """(B,): mean over heads and queries of -sum_key P log Q, P the target's attention, Q the other's; of the heads that both have, in order (HASTE,
    arXiv 2505.16792). Queries, keys and values side by side, of as many tokens."""
    first = min(heads, target_heads)
    wanted_BHTT = attention_logits(target_BTF, target_heads, first).softmax(-1)
    return -(wanted_BHTT * attention_logits(qkv_BTE, heads, first).log_softmax(-1)).sum(-1).mean((1, 2))


def group_cosine(prediction_BTC: Tensor, target_BTC: Tensor, channels: list[int]) -> Tensor:
    """(B,): mean over tokens of sum_g |y_g| (1 - cos(z_g, y_g)), prediction z and target y.

    Group g is the next channels[g] channels. Of unit vectors times beta it is sum_g beta_g (1 - cos_g), linear in beta (ours).
    """
    parts = zip(prediction_BTC.float().split(channels, -1), target_BTC.float().split(channels, -1), strict=True)
    return torch.stack([y.norm(dim=-1) - (F.normalize(z, dim=-1) * y).sum(-1) for z, y in parts]).sum(0).mean(1)


def l1(prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """(B,): mean absolute difference over tokens and channels (AHPA Table D.13 (b))."""
    return (prediction_BTC.float() - target_BTC.float()).abs().mean(dim=(1, 2))


def smooth_l1(prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """(B,): mean over tokens and channels of d^2 / (2 beta) below beta and |d| - beta / 2 above, beta = 0.05 (SRA; AHPA Table D.13 (c))."""
    return F.smooth_l1_loss(prediction_BTC.float(), target_BTC.float(), beta=BETA, reduction="none").mean(dim=(1, 2))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine, "l1": l1, "smooth_l1": smooth_l1}


def find(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Raises ValueError listing the valid names."""
    if name not in LOSSES:
        raise ValueError(f"alignment.loss {name!r} does not exist; choose from {', '.join(LOSSES)}")
    return LOSSES[name]
