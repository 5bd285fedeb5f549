"""SiT (Ma et al. 2024): a class-conditional transformer that predicts the velocity, under the official state-dict names.

It is a diffusers model (`save_pretrained`, `from_pretrained`). Time runs as in `gsnr.train.interpolant`: t = 1 is noise.

An extra token (REG, Wu et al. 2025, arXiv 2507.01467) goes before the patches: a vector, noised like the latent, whose velocity is predicted too.

Shapes: B batch, C latent channels, H = W latent side, P patch, T = (H/P)^2 tokens, D hidden size. h_BTD hidden state, c_BD condition.
E channels of the extra token. Taps are 1-based: tap k is the output of block k; tap -k its attention's queries, keys and values, side by side:
(B,T,3D). Both are of the patches alone. Keys and values of a block may be given from outside (REPI), side by side, (B,T,2D): the patches' alone, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  (a pipeline's loader looks for it in this module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from gsnr.train.config import CLASS_TOKEN
from gsnr.train.models.backbone import NOTHING, Backbone, check_sizes
from gsnr.train.models.layers import FinalLayer, Mlp, PatchEmbed, TimestepEmbedder, Velocity, attended, modulate, position_table
from gsnr.train.models.routing import Routing, Stream

ATTENTION, MLP = "attention", "mlp"  # sublayers of a block
STANDARD, DAR = RESIDUALS = ("standard", "dar")
EXTRA = 10_000  # more than any model has blocks


def extra_of(tap: int) -> int:
    """The key, among hidden states, of the extra token's (B,1,D) at a tap."""
    return EXTRA + tap


def _check_replaced(replaced: Mapping[int, Tensor], shape: tuple[int, int, int]) -> None:
    for k, kv in replaced.items():
        if k < 1 or kv.shape != shape:
            raise ValueError(f"keys and values of block {k}: have shape {tuple(kv.shape)}, not {shape}")


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
        _, t, d = h_BTD.shape
        qkv_BTE = self.qkv(h_BTD)
        if kv_BSE is not None:
            q_BTD, own_BTE = qkv_BTE.split([d, 2 * d], -1)
            qkv_BTE = torch.cat([q_BTD, torch.cat([own_BTE[:, : t - kv_BSE.shape[1]], kv_BSE], 1)], -1)
        return self.proj(attended(qkv_BTE, self.num_heads)), qkv_BTE


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


class SiT(Backbone):
    """See `Backbone`; y (B,) int64, a class, of which `num_classes` is the null one.

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
        check_sizes(input_size, patch_size, hidden_size, num_heads)
        self.patch_size = patch_size
        self.grid = input_size // patch_size
        self.x_embedder = PatchEmbed(in_channels, patch_size, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.has_extra = extra_token is not None
        self.register_buffer("pos_embed", position_table(self.grid, hidden_size, self.has_extra))
        self.blocks = nn.ModuleList(SiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size * patch_size * in_channels)
        self.initialise_as_dit()
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

    @property
    def reads(self) -> tuple[str, ...]:
        return (CLASS_TOKEN,) if self.has_extra else ()

    def condition(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["label"]

    def null(self, y: Tensor) -> Tensor:
        return torch.full_like(y, self.config["num_classes"])

    def _tokens(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """(B,T,D), or (B,1+T,D). Raises ValueError for an extra token where there is none, and the other way round."""
        if (extra is not None) != self.has_extra:
            raise ValueError(f"extra: this model has {'an' if self.has_extra else 'no'} extra token")
        tokens = self.x_embedder(x)
        return (tokens if extra is None else torch.cat([self.extra_embedder(extra), tokens], dim=1)) + self.pos_embed

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
        self.check_blocks((*taps, *replaced))
        _check_replaced(replaced, (len(x), self.grid**2, 2 * self.config["hidden_size"]))
        h_BTD, t_BD = self._tokens(x, extra), self.t_embedder(t)
        c_BD = t_BD + self.y_embedder(y, label_drop)
        stream, hidden = None, dict[int, Tensor]()
        if self.routing is not None:
            stream = self.routing.begin(h_BTD, t_BD)
            h_BTD = stream.read()
        for k, block in enumerate(self.blocks, start=1):
            asked = (-k in taps, replaced.get(k))
            made: Any = self.run_block(block, h_BTD, c_BD, "", *asked) if stream is None else self._routed(block, h_BTD, c_BD, stream, *asked)
            h_BTD, *qkv_BTE = made if -k in taps else (made,)
            if qkv_BTE:
                hidden[-k] = qkv_BTE[0][:, 1:] if self.has_extra else qkv_BTE[0]
            if k in taps:
                hidden |= {k: h_BTD[:, 1:], extra_of(k): h_BTD[:, :1]} if self.has_extra else {k: h_BTD}
            if stop and k == max(map(abs, taps)) < len(self.blocks):
                return None, hidden
        out = self.final_layer(h_BTD, c_BD)
        return (self.unpatchify(out[0]), out[1]) if isinstance(out, tuple) else self.unpatchify(out), hidden

    def _routed(
        self, block: Any, h_BTD: Tensor, c_BD: Tensor, stream: Stream, with_qkv: bool = False, kv_BSE: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the next block reads, or the final layer; with_qkv and kv as of a block. h: what this one reads."""
        modulation_BF = block.adaLN_modulation(c_BD)
        attended_BTD, qkv_BTE = self.run_block(block, h_BTD, modulation_BF, ATTENTION, True, kv_BSE)
        stream.write(attended_BTD)
        stream.write(self.run_block(block, stream.read(), modulation_BF, MLP))
        return (stream.read(), qkv_BTE) if with_qkv else stream.read()
