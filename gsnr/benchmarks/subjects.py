"""What `gsnr bench` measures on: SiT-like stacks and a convolutional net, with random data and weights. Imports nothing of train.

Shapes: B samples, T tokens, P values of a patch, D width, H heads, E = D/H, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsnr.batches import Batch
from gsnr.engines import Loss

BATCH = 16
PATCH = 16  # 2 x 2 of 4 latent channels
Made = tuple[nn.Module, Batch, Loss]  # model, one batch, loss


@dataclass(frozen=True)
class Subject:
    """A model, its per-sample loss(model, batch) -> (B,), and batches of independent samples."""

    name: str
    model: nn.Module
    loss: Loss
    batches: list[Batch]

    @property
    def parameters(self) -> int:
        """How many numbers the gradient of one sample has."""
        return sum(p.numel() for p in self.model.parameters())


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, h_BTD: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = self.qkv(h_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """adaLN-Zero (Peebles & Xie 2023), with modulations as nn.Linear initialises them: at zero most gradients would be zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h_BTD: Tensor, c_BD: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c_BD).unsqueeze(1).chunk(6, dim=-1)
        h_BTD = h_BTD + gate1 * self.attn(self.norm1(h_BTD) * (1 + scale1) + shift1)
        return h_BTD + gate2 * self.mlp(self.norm2(h_BTD) * (1 + scale2) + shift2)


class SiTLike(nn.Module):
    """The layers of a SiT that cost: patches x_BTP and a condition c_BD -> (B,T,P)."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.head = nn.Linear(width, PATCH)

    def forward(self, x_BTP: Tensor, c_BD: Tensor) -> Tensor:
        h_BTD = self.embed(x_BTP)
        for block in self.blocks:
            h_BTD = block(h_BTD, c_BD)
        return self.head(self.norm(h_BTD))


class Residual(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, beside a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.GroupNorm(8, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.skip = nn.Identity() if (inputs, stride) == (outputs, 1) else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        return self.skip(h_BCHW) + self.body(h_BCHW)


def sit(width: int, heads: int, depth: int, tokens: int = 256, batch: int = BATCH) -> Made:
    """A SiT-like stack; loss = mean squared error of the predicted velocity."""
    data = {"x": torch.randn(batch, tokens, PATCH), "c": torch.randn(batch, width), "v": torch.randn(batch, tokens, PATCH)}
    return SiTLike(width, heads, depth), data, lambda model, b: (model(b["x"], b["c"]) - b["v"]).square().flatten(1).mean(1)


def convnet(width: int, side: int = 32, batch: int = BATCH) -> Made:
    """A ResNet-like net on side x side images; loss = mean squared error of ten outputs."""
    stages = [Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)]
    head = [nn.GroupNorm(8, 4 * width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    model = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *stages, *head)
    data = {"x": torch.randn(batch, 3, side, side), "y": torch.randn(batch, 10)}
    return model, data, lambda model, b: (model(b["x"]) - b["y"]).square().mean(1)


SUBJECTS: dict[str, Callable[[], Made]] = {
    "sit-64": partial(sit, 64, 4, 3),
    "sit-384": partial(sit, 384, 6, 3),
    "sit-768": partial(sit, 768, 12, 3),
    "conv": partial(convnet, 64),
    "sit-1152": partial(sit, 1152, 16, 3),
    "sit-b": partial(sit, 768, 12, 12),
    "sit-xl": partial(sit, 1152, 16, 28),
}
ON_A_GPU = ("sit-1152", "sit-b", "sit-xl")  # without --subjects, measured only where there is one


def build(name: str, batches: int, device: torch.device, make: Callable[[], Made] | None = None) -> Subject:
    """The subject of that name (or what `make` returns), with `batches` different batches; weights and data always the same."""
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        model, first, loss = (make or SUBJECTS[name])()
        rest = [{key: torch.randn_like(x) for key, x in first.items()} for _ in range(batches - 1)]
    moved = [{key: x.to(device) for key, x in batch.items()} for batch in [first, *rest]]
    return Subject(name, model.to(device), loss, moved)
