"""Raw latents (what the VAE encodes to and decodes from) and final latents (what the model sees).

    final = scale s_c (raw - b_c)

scale is the VAE's scaling factor; s_c and b_c are 1 and 0, or the data's own per channel c (iREPA, with scale 1). Shapes: N images, (C,h,w).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

from train.data.cache import Header

Latents = TypeVar("Latents", np.ndarray, torch.Tensor)


def _channels(values: tuple[float, ...], like: Any) -> Any:
    """(C,1,1), of the kind, dtype and device of `like`."""
    if isinstance(like, torch.Tensor):
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
    return np.array(values, dtype=like.dtype).reshape(-1, 1, 1)


def to_final(raw_NChw: Latents, header: Header) -> Latents:
    """Raw latents -> final latents, in the same dtype."""
    if not header.channel_scale:
        return raw_NChw * header.scale
    return (raw_NChw - _channels(header.channel_bias, raw_NChw)) * _channels(header.channel_scale, raw_NChw) * header.scale


def to_raw(final_NChw: Latents, header: Header) -> Latents:
    """Final latents -> raw latents, in the same dtype."""
    if not header.channel_scale:
        return final_NChw / header.scale
    return final_NChw / header.scale / _channels(header.channel_scale, final_NChw) + _channels(header.channel_bias, final_NChw)
