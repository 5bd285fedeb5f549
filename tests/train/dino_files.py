"""A tiny DINOv2 on disk, as the hub keeps it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

TINY = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=70, patch_size=14, hidden_dropout_prob=0.5)


def save_dino(folder: Path, registers: int = 0, **changes: int) -> Dinov2Model | Dinov2WithRegistersModel:
    """A tiny DINOv2 whose every weight matters, in a folder. Returned in eval mode."""
    torch.manual_seed(0)
    kind = Dinov2WithRegistersModel if registers else Dinov2Model
    config = Dinov2WithRegistersConfig(num_register_tokens=registers, **TINY | changes) if registers else Dinov2Config(**TINY | changes)
    model = kind(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    return model.eval()
