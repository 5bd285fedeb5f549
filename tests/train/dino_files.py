"""Small DINOv2 models in the hub's format."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
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


def with_positions_for(model: torch.nn.Module, side: int) -> torch.nn.Module:
    """A copy whose position embeddings, one channel after another, PIL has resized: its bicubic filter antialiases, as timm's resampling does."""
    made = copy.deepcopy(model)
    stored = model.embeddings.position_embeddings.detach()
    old = round((stored.shape[1] - 1) ** 0.5)
    maps = [Image.fromarray(stored[0, 1:, c].view(old, old).numpy()).resize((side, side), Image.Resampling.BICUBIC) for c in range(stored.shape[2])]
    resized = torch.from_numpy(np.stack([np.asarray(m).ravel() for m in maps], axis=-1))
    made.embeddings.position_embeddings = torch.nn.Parameter(torch.cat([stored[:, :1], resized[None]], dim=1))
    return made
