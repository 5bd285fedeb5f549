"""Alignment losses: one value per sample, in float32 whatever the precision of the inputs. Shapes: B samples, T tokens, C channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine(prediction_BTC: Tensor, target_BTC: Tensor) -> Tensor:
    """(B,): 1 - mean over tokens of the cosine over channels (AHPA Eq. 5)."""
    return 1 - F.cosine_similarity(prediction_BTC.float(), target_BTC.float(), dim=-1).mean(dim=1)
