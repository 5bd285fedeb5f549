"""SiT (Ma et al. 2024): a class-conditional transformer that predicts the velocity, under the official state-dict names.

It is a diffusers model (`save_pretrained`, `from_pretrained`). Time runs as in `gsnr.train.interpolant`: t = 1 is noise.

An extra token (REG, Wu et al. 2025, arXiv 2507.01467) goes before the patches: a vector, noised like the latent, whose velocity is predicted too.

Shapes: B batch, C latent channels, H = W latent side, P patch, T = (H/P)^2 tokens, D hidden size. h_BTD hidden state, c_BD condition.
E channels of the extra token. Taps are 1-based: tap k is the output of block k; tap -k its attention's queries, keys and values, side by side:
(B,T,3D). Both are of the patches alone. Keys and values of a block may be given from outside (REPI), side by side, (B,T,2D): the patches' alone, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gsnr.train.models.routing import Routing, Stream

FREQUENCIES = 256  # of the timestep embedding
ATTENTION, MLP = "attention", "mlp"  # sublayers of a block
STANDARD, DAR = RESIDUALS = ("standard", "dar")
Velocity = Tensor | tuple[Tensor, Tensor]  # of the latent, (B,C,H,W); beside it that of the extra token, (B,E), of a model that has one
EXTRA = 10_000  # more than any model has blocks
NOTHING: Mapping[int, Tensor] = MappingProxyType({})


def extra_of(tap: int) -> int:
    """The key, among hidden states, of the extra token's (B,1,D) at a tap."""
    return EXTRA + tap


def _check_replaced(replaced: Mapping[int, Tensor], shape: tuple[int, int, int]) -> None:
    for k, kv in replaced.items():
        if k < 1 or kv.shape != shape:
            raise ValueError(f"keys and values of block {k}: have shape {tuple(kv.shape)}, not {shape}")


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


class PatchEmbed(nn.Module):
    """Latent (B,C,H,W) -> tokens (B,T,D), row by row."""

    def __init__(self, in_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)


class ExtraEmbedder(nn.Module):
    """Extra vector (B,E) -> its token (B,1,D)."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, extra_BE: Tensor) -> Tensor:
        return self.norm(self.proj(extra_BE)).unsqueeze(1)


class TimestepEmbedder(nn.Module):
    """t in [0, 1] itself (not x1000) -> 256 sinusoids, cosines first -> (B,D)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, t_B: Tensor) -> Tensor:
        angles = t_B[:, None].float() * timestep_frequencies(t_B.device)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """Class -> (B,D); class `num_classes` is the null label that dropped samples take."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y_B: Tensor, label_drop_B: Tensor | None) -> Tensor:
        if label_drop_B is not None:
            y_B = torch.where(label_drop_B, self.num_classes, y_B)
        return self.embedding_table(y_B)


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, h_BTD: Tensor, kv_BSE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(its output, its queries, keys and values side by side). kv: keys and values that the last S tokens take for theirs."""
        b, t, d = h_BTD.shape
        qkv_BTE = self.qkv(h_BTD)
        if kv_BSE is not None:
            q_BTD, own_BTE = qkv_BTE.split([d, 2 * d], -1)
            qkv_BTE = torch.cat([q_BTD, torch.cat([own_BTE[:, : t - kv_BSE.shape[1]], kv_BSE], 1)], -1)
        q, k, v = qkv_BTE.view(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)), qkv_BTE


class Mlp(nn.Module):
    def __init__(self, hidden_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))
        self.fc2 = nn.Linear(int(hidden_size * mlp_ratio), hidden_size)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h_BTD), approximate="tanh"))


class SiTBlock(nn.Module):
    """Attention and MLP, each between an adaptive LayerNorm and a zero-initialised gate (adaLN-Zero, Peebles and Xie 2023)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(hidden_size, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(
        self, h_BTD: Tensor, c_BD: Tensor, half: str = "", with_qkv: bool = False, kv_BSE: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The stream after both; with_qkv: beside its attention's queries, keys and values. half: attention or mlp, the gated output of that alone;
        `c` is then what `adaLN_modulation` made of it. kv: see `Attention`."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (c_BD if half else self.adaLN_modulation(c_BD)).chunk(6, dim=1)
        if half == MLP:
            return gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(h_BTD), shift_m, scale_m))
        attended_BTD, qkv_BTE = self.attn(modulate(self.norm1(h_BTD), shift_a, scale_a), kv_BSE)
        made_BTD = gate_a.unsqueeze(1) * attended_BTD
        if half != ATTENTION:
            h_BTD = h_BTD + made_BTD
            made_BTD = h_BTD + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(h_BTD), shift_m, scale_m))
        return (made_BTD, qkv_BTE) if with_qkv else made_BTD


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


class SiT(ModelMixin, ConfigMixin):
    """model(x, t, y) -> velocity; x (B,C,H,W), t (B,) in [0, 1] with t = 1 noise, y (B,) int64, velocity (B,C,H,W).

    With extra_token = E: model(x, t, y, extra=(B,E)) -> (velocity, velocity of the extra token (B,E))."""

    @register_to_config
    def __init__(
        self,
        *,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        residual: str = STANDARD,
        queries: str = "static",
        chunk: int = 4,
        summary: str = "last",
        final: str = "own",
        query_std: float = 0.0,
        extra_token: int | None = None,
    ) -> None:
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"model.residual {residual!r} does not exist; choose from {', '.join(RESIDUALS)}")
        if input_size % patch_size:
            raise ValueError(f"model: input_size {input_size} is not a multiple of patch_size {patch_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"model: hidden_size {hidden_size} must be a multiple of num_heads {num_heads} and of 4")
        self.patch_size = patch_size
        self.grid = input_size // patch_size
        self.x_embedder = PatchEmbed(in_channels, patch_size, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.has_extra = extra_token is not None
        self.register_buffer("pos_embed", position_table(self.grid, hidden_size, self.has_extra))
        self.blocks = nn.ModuleList(SiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size * patch_size * in_channels)
        self.checkpointing = False  # compute the blocks' activations again in backward
        self._initialise()
        self.routing = None
        if residual == DAR:
            self.routing = Routing(
                depth=depth, hidden_size=hidden_size, queries=queries, chunk=chunk, summary=summary, final=final, query_std=query_std
            )
            if queries == "static_t":  # so that it begins as `static` does (the paper; it changes adaLN's condition, too)
                nn.init.zeros_(self.t_embedder.get_parameter("mlp.2.weight"))
        if extra_token is not None:  # after the others, which start as without it
            self.extra_embedder = ExtraEmbedder(extra_token, hidden_size)
            self.final_layer.extra = nn.Linear(hidden_size, extra_token)
            nn.init.zeros_(self.final_layer.extra.weight)
            nn.init.zeros_(self.final_layer.extra.bias)

    def _initialise(self) -> None:
        """DiT's initialisation: Xavier for linear layers, 0.02 for embeddings, zero for every modulation and for the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.x_embedder.proj.out_channels, -1))
        for name, p in self.named_parameters():
            if name.startswith(("y_embedder.", "t_embedder.mlp")) and name.endswith("weight"):
                nn.init.normal_(p, std=0.02)
            elif "adaLN_modulation" in name or name.startswith("final_layer.") or name == "x_embedder.proj.bias":
                nn.init.zeros_(p)

    def unpatchify(self, tokens_BTF: Tensor) -> Tensor:
        """(B, T, P*P*C) -> (B,C,H,W)."""
        p, g = self.patch_size, self.grid
        x = tokens_BTF.view(len(tokens_BTF), g, g, p, p, -1)
        return torch.einsum("bhwpqc->bchpwq", x).reshape(len(tokens_BTF), -1, g * p, g * p)

    def _tokens(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """(B,T,D), or (B,1+T,D). Raises ValueError for an extra token where there is none, and the other way round."""
        if (extra is not None) != self.has_extra:
            raise ValueError(f"extra: this model has {'an' if self.has_extra else 'no'} extra token")
        tokens = self.x_embedder(x)
        return (tokens if extra is None else torch.cat([self.extra_embedder(extra), tokens], dim=1)) + self.pos_embed

    def forward(self, x: Tensor, t: Tensor, y: Tensor, label_drop: Tensor | None = None, extra: Tensor | None = None) -> Velocity:
        """Velocity. label_drop: bool (B,), True where the label is replaced by the null class. extra: (B,E), of a model with an extra token."""
        velocity, _ = self.forward_with_taps(x, t, y, label_drop, extra=extra)
        assert velocity is not None
        return velocity

    def forward_with_taps(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        label_drop: Tensor | None = None,
        *,
        taps: tuple[int, ...] = (),
        stop: bool = False,
        extra: Tensor | None = None,
        replaced: Mapping[int, Tensor] = NOTHING,
    ) -> tuple[Velocity | None, dict[int, Tensor]]:
        """(velocity, {k: h_BTD after block k; -k: its queries, keys and values}), of the patches alone; the extra token's h is there as
        `extra_of(k)`, (B,1,D). With `stop`, nothing above the last tap is computed; the velocity is None unless the last tap is the last block.
        replaced: k -> (B,T,2D), keys and values that the patches have in block k in place of their own; the extra token keeps its own.

        Raises ValueError for a tap outside 1..depth, for an extra token that is missing or that the model does not have, and for keys and values
        of no block or of another shape.
        """
        bad = [k for k in (*taps, *replaced) if not 1 <= abs(k) <= len(self.blocks)]
        if bad:
            raise ValueError(f"tap {bad[0]} does not exist: this model has blocks 1 to {len(self.blocks)}")
        _check_replaced(replaced, (len(x), self.grid**2, 2 * self.config["hidden_size"]))
        h_BTD, t_BD = self._tokens(x, extra), self.t_embedder(t)
        c_BD = t_BD + self.y_embedder(y, label_drop)
        stream, hidden = None, dict[int, Tensor]()
        if self.routing is not None:
            stream = self.routing.begin(h_BTD, t_BD)
            h_BTD = stream.read()
        for k, block in enumerate(self.blocks, start=1):
            asked = (-k in taps, replaced.get(k))
            made: Any = self._block(block, h_BTD, c_BD, "", *asked) if stream is None else self._routed(block, h_BTD, c_BD, stream, *asked)
            h_BTD, *qkv_BTE = made if -k in taps else (made,)
            if qkv_BTE:
                hidden[-k] = qkv_BTE[0][:, 1:] if self.has_extra else qkv_BTE[0]
            if k in taps:
                hidden |= {k: h_BTD[:, 1:], extra_of(k): h_BTD[:, :1]} if self.has_extra else {k: h_BTD}
            if stop and k == max(map(abs, taps)) < len(self.blocks):
                return None, hidden
        out = self.final_layer(h_BTD, c_BD)
        return (self.unpatchify(out[0]), out[1]) if isinstance(out, tuple) else self.unpatchify(out), hidden

    def _block(self, block: nn.Module, h_BTD: Tensor, *inputs: Any) -> Any:
        recompute = self.checkpointing and torch.is_grad_enabled()
        return checkpoint(block, h_BTD, *inputs, use_reentrant=False) if recompute else block(h_BTD, *inputs)

    def _routed(
        self, block: Any, h_BTD: Tensor, c_BD: Tensor, stream: Stream, with_qkv: bool = False, kv_BSE: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the next block reads, or the final layer; with_qkv and kv as of a block. h: what this one reads."""
        modulation_BF = block.adaLN_modulation(c_BD)
        attended_BTD, qkv_BTE = self._block(block, h_BTD, modulation_BF, ATTENTION, True, kv_BSE)
        stream.write(attended_BTD)
        stream.write(self._block(block, stream.read(), modulation_BF, MLP))
        return (stream.read(), qkv_BTE) if with_qkv else stream.read()
