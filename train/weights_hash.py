"""The weights hash of a frozen network, so that data made with one are never taken for another's."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_hash(model: nn.Module, also: str = "") -> str:
    """SHA-256 over `also` and the names, dtypes, shapes and bytes of the state dict. A model saved again, or as another file, keeps it."""
    digest = hashlib.sha256(also.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
