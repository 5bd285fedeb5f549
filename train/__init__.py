"""Training: SiT with alignment targets from a frozen VAE encoder. `train.load_model(PATH)` gives the backbone of a run or checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.checkpoint import load_model as load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    if name != "load_model":
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    from train.checkpoint import load_model

    return load_model
