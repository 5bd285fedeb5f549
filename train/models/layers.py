"""What backbones are made of, under the names that DiT, SiT and REPA give it.

Shapes: B batch, C latent channels, H = W latent side, P patch, T = (H/P)^2 tokens, D hidden size. h_BTD hidden state, c_BD condition.
E channels of the extra token.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 256  # of the timestep embedding
Velocity = Tensor | tuple[Tensor, Tensor]  # of the latent, (B,C,H,W); beside it that of the extra token, (B,E), of a model that has one


def sincos_1d(positions_T: np.ndarray, width: int) -> np.ndarray:
    """(T, width) float64: sines of width/2 geometric frequencies, then their cosines."""
    omega = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.outer(positions_T, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(side: int, width: int) -> Tensor:
    """(1, side^2, width) float32: half the channels for the column, half for the row, as in MAE and DiT."""
    row, column = np.divmod(np.arange(side * side), side)
    table = np.concatenate([sincos_1d(column, width // 2), sincos_1d(row, width // 2)], axis=1)
    return torch.from_numpy(table).float().unsqueeze(0)


def position_table(side: int, width: int, extra: bool) -> Tensor:
    """`sincos_2d`, after a row of zeros for an extra token."""
    return F.pad(sincos_2d(side, width), (0, 0, int(extra), 0))


def timestep_frequencies(device: torch.device | None = None) -> Tensor:
    """(128,) float32: of the timestep embedding's cosines, and of its sines; from 1 down to almost 1e-4."""
    half = FREQUENCIES // 2
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=device) / half)


def modulate(h_BTD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    return h_BTD * (1 + scale_BD.unsqueeze(1)) + shift_BD.unsqueeze(1)


def attended(qkv_BTE: Tensor, heads: int) -> Tensor:
    """(B,T,D): softmax attention of queries, keys and values side by side (E = 3D), each head by head."""
    b, t, e = qkv_BTE.shape
    q, k, v = qkv_BTE.view(b, t, 3, heads, e // 3 // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, e // 3)


class PatchEmbed(nn.Module):
    """Latent (B,C,H,W) -> tokens (B,T,D), row by row."""

    def __init__(self, in_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """t in [0, 1] itself (not x1000) -> 256 sinusoids, cosines first -> (B,D)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t_B: Tensor) -> Tensor:
        angles = t_B[:, None].float() * timestep_frequencies(t_B.device)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


class Mlp(nn.Module):
    def __init__(self, hidden_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.fc2 = nn.Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h_BTD), approximate="tanh"))


class FinalLayer(nn.Module):
    """Tokens -> velocities of their patches (B,T,P*P*C); with `extra`, token 0 -> (B,E) beside them."""

    extra: nn.Linear | None

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, out_features)
        self.register_module("extra", None)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, h_BTD: Tensor, c_BD: Tensor) -> Velocity:
        shift, scale = self.adaLN_modulation(c_BD).chunk(2, dim=1)
        out_BTD = modulate(self.norm_final(h_BTD), shift, scale)
        return self.linear(out_BTD) if self.extra is None else (self.linear(out_BTD[:, 1:]), self.extra(out_BTD[:, 0]))
