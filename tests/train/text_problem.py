"""A small MMDiT, batches with text for it, and the sums of its block by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsnr.train.config import TEXT, ModelConfig
from gsnr.train.contracts.problem import batch_of
from gsnr.train.models.mmdit import MMDiT

L, C = 5, 6  # places and channels of a text
SMALL = ModelConfig(kind="mmdit", input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, text_width=C, text_tokens=L)


def mmdit(seed: int = 0) -> MMDiT:
    torch.manual_seed(seed)
    model = MMDiT(**SMALL.options)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    model.null_text.normal_()
    return model.eval()


def text_batch(b: int = 4, seed: int = 0) -> dict[str, Tensor]:
    text = torch.randn(b, L, C, generator=torch.Generator().manual_seed(seed + 9))
    return batch_of(b, seed) | {TEXT: text, "label": torch.zeros(b, dtype=torch.int64), "label_drop": torch.zeros(b, dtype=torch.bool)}
