"""Raw latents (what the VAE encodes to and decodes from) and final latents (what the model sees).

    final = factor s_c (raw - b_c)

factor is the VAE's scaling factor; s_c and b_c are 1 and 0, or the data's own per channel c (iREPA, with factor 1). Shapes: (N,C,h,w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

Latents = TypeVar("Latents", np.ndarray, torch.Tensor)


def _channels(values: tuple[float, ...], like: Any) -> Any:
    """(C,1,1), of the kind, dtype and device of `like`."""
    if isinstance(like, torch.Tensor):
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
    return np.array(values, dtype=like.dtype).reshape(-1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """channel_scale, channel_bias: s and b, of C numbers each, or () for 1 and 0."""

    factor: float
    channel_scale: tuple[float, ...] = ()
    channel_bias: tuple[float, ...] = ()

    def final(self, raw_NChw: Latents) -> Latents:
        """In the same dtype."""
        if not self.channel_scale:
            return raw_NChw * self.factor
        return (raw_NChw - _channels(self.channel_bias, raw_NChw)) * _channels(self.channel_scale, raw_NChw) * self.factor

    def raw(self, final_NChw: Latents) -> Latents:
        """In the same dtype."""
        if not self.channel_scale:
            return final_NChw / self.factor
        return final_NChw / self.factor / _channels(self.channel_scale, final_NChw) + _channels(self.channel_bias, final_NChw)
