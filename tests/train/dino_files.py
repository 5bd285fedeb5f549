"""Small DINOv2 models in the hub's format; resizing as they do it, written again."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and deviation
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


def bicubic(n: int, m: int) -> np.ndarray:
    """(m, n) float64: resizing n samples to m by the cubic kernel of Keys (1981) with a = -0.75, no antialiasing, edges repeated."""
    a, matrix = -0.75, np.zeros((m, n))
    for i in range(m):
        centre = (i + 0.5) * n / m - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - j)
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), n - 1)] += weight
    return matrix


def with_positions_for(model: torch.nn.Module, side: int) -> torch.nn.Module:
    """A copy whose position embeddings, one channel after another, PIL has resized: its bicubic filter antialiases, as timm's resampling does."""
    made = copy.deepcopy(model)
    stored = model.embeddings.position_embeddings.detach()
    old = round((stored.shape[1] - 1) ** 0.5)
    maps = [Image.fromarray(stored[0, 1:, c].view(old, old).numpy()).resize((side, side), Image.Resampling.BICUBIC) for c in range(stored.shape[2])]
    resized = torch.from_numpy(np.stack([np.asarray(m).ravel() for m in maps], axis=-1))
    made.embeddings.position_embeddings = torch.nn.Parameter(torch.cat([stored[:, :1], resized[None]], dim=1))
    return made
