"""A small residual classifier (pre-activation: He et al. 2016), fully convolutional: the demo's own image teacher.

It is a diffusers model (`save_pretrained`, `from_pretrained`).

Shapes: B batch, R image side, C channels of the last map, g = R/8 its side, K classes. Pixels in [-1, 1].
"""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

GROUPS = 8  # of every GroupNorm


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        inner_BCHW = self.conv1(F.silu(self.norm1(h_BCHW)))
        return h_BCHW + self.conv2(F.silu(self.norm2(inner_BCHW)))


class ConvNet(ModelMixin, ConfigMixin):
    """model(images (B,3,R,R)) -> the last map (B,C,g,g); model.logits(images) -> (B,K) from its mean over the map."""

    @register_to_config
    def __init__(self, *, widths: tuple[int, ...] = (32, 64, 128), num_classes: int = 10) -> None:
        super().__init__()
        levels = [nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), ResidualBlock(o)) for i, o in zip((3, *widths), widths, strict=False)]
        self.levels = nn.Sequential(*levels)
        self.norm = nn.GroupNorm(GROUPS, widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return F.silu(self.norm(self.levels(images_BCHW)))

    def logits(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self(images_BCHW).mean((2, 3)))
