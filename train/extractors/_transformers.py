"""Frozen encoders of transformers, from a folder or a hub id."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gsnr.train.teacher import quiet


def pretrained(kind: Any, source: str, features: str) -> nn.Module:
    """A model of this class of transformers, float32. Raises ValueError naming the source where it is missing, damaged or another kind's."""
    try:
        with quiet():
            model, notes = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # the library raises a dozen kinds for a missing, damaged or foreign folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"features {features}: {source!r} cannot be loaded (name a folder or hub id with --weights-file): {reason}") from error
    lacking = sorted([*notes["missing_keys"], *(key for key, *_ in notes["mismatched_keys"])])
    if lacking:
        raise ValueError(f"features {features}: {source!r}: its weights lack {lacking[0]}, or have it in another shape")
    return model.float()


def normalised(pixels_B3HW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Of pixels in [0, 255], scaled to [0, 1] first."""
    return (pixels_B3HW / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
