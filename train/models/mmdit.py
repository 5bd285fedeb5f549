"""MMDiT for text to image, as REPA trains it on MS-COCO (Yu et al. 2025; the block of Esser et al. 2024): a stream of patches and one of text.

A block has its own weights for each stream; queries, keys and values of both attend together. Text has neither positions nor a pooled vector, and
all of its L places attend, padding too. The last block's text stream gives queries, keys and values and nothing more. Positions of patches are
fixed sinusoids. Time runs as in `gsnr.train.interpolant`: t = 1 is noise. The condition is states of a caption; the null one those of the empty
caption, the buffer `null_text`, which the trainer sets.

Shapes: B batch, T patches, L text places, D hidden size, C channels of the text's states. Taps are of the patches: see `gsnr.train.models.sit`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import ModelMixin  # noqa: F401  (a pipeline's loader looks for it in this module)
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from gsnr.train.config import TEXT
from gsnr.train.models.backbone import NOTHING, Backbone, check_sizes
from gsnr.train.models.layers import FinalLayer, Mlp, PatchEmbed, TimestepEmbedder, Velocity, attended, modulate, sincos_2d

Streams = tuple[Tensor, Tensor]  # patches (B,T,D), text (B,L,D)
INIT_RULES = ("default", "adaln_zero")


class _Projections(nn.Module):
    """Of attention, before it and (writes) after it."""

    def __init__(self, hidden_size: int, writes: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        if writes:
            self.proj = nn.Linear(hidden_size, hidden_size)


class StreamBlock(nn.Module):
    """One stream's weights of a block. writes: False for a stream that ends here, which needs no more than its queries, keys and values."""

    def __init__(self, hidden_size: int, mlp_ratio: float, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = _Projections(hidden_size, writes)
        if writes:
            self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
            self.mlp = Mlp(hidden_size, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, (6 if writes else 2) * hidden_size))

    def read(self, h_BTD: Tensor, c_BD: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(queries, keys and values side by side, (B,T,3D); what modulates the rest)."""
        shift_BD, scale_BD, *rest = self.adaLN_modulation(c_BD).chunk(6 if self.writes else 2, dim=1)
        return self.attn.qkv(modulate(self.norm1(h_BTD), shift_BD, scale_BD)), rest

    def write(self, h_BTD: Tensor, attended_BTD: Tensor, rest: list[Tensor]) -> Tensor:
        """The stream after attention and MLP."""
        gate_a, shift_m, scale_m, gate_m = rest
        h_BTD = h_BTD + gate_a.unsqueeze(1) * self.attn.proj(attended_BTD)
        return h_BTD + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(h_BTD), shift_m, scale_m))


class JointBlock(nn.Module):
    """Both streams, each between adaptive LayerNorms and gates, one attention over the two. x: patches; context: text."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, last: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.context = StreamBlock(hidden_size, mlp_ratio, writes=not last)
        self.x = StreamBlock(hidden_size, mlp_ratio, writes=True)

    def forward(self, streams: Streams, c_BD: Tensor, with_qkv: bool = False) -> Streams | tuple[Streams, Tensor]:
        """Both after the block; with_qkv: beside the patches' queries, keys and values, (B,T,3D)."""
        x_BTD, text_BLD = streams
        of_text, text_rest = self.context.read(text_BLD, c_BD)
        of_x, x_rest = self.x.read(x_BTD, c_BD)
        together = attended(torch.cat([of_text, of_x], dim=1), self.num_heads)
        to_text, to_x = together.split([text_BLD.shape[1], x_BTD.shape[1]], dim=1)
        x_BTD = self.x.write(x_BTD, to_x, x_rest)
        if self.context.writes:
            text_BLD = self.context.write(text_BLD, to_text, text_rest)
        return ((x_BTD, text_BLD), of_x) if with_qkv else (x_BTD, text_BLD)


class MMDiT(Backbone):
    """See `Backbone`; y (B,L,C) float, states of a caption. init_rule: "default" is PyTorch's, as in REPA; "adaln_zero" DiT's and SiT's."""

    null_text: Tensor  # (L,C)

    @register_to_config
    def __init__(
        self,
        *,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 24,
        num_heads: int = 24,
        mlp_ratio: float = 4.0,
        text_width: int = 768,
        text_tokens: int = 77,
        init_rule: str = "default",
    ) -> None:
        super().__init__()
        check_sizes(input_size, patch_size, hidden_size, num_heads)
        if init_rule not in INIT_RULES:
            raise ValueError(f"model.init_rule {init_rule!r} does not exist; choose from {', '.join(INIT_RULES)}")
        self.patch_size = patch_size
        self.grid = input_size // patch_size
        self.x_embedder = PatchEmbed(in_channels, patch_size, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.context_embedder = nn.Linear(text_width, hidden_size)
        self.register_buffer("pos_embed", sincos_2d(self.grid, hidden_size))
        self.register_buffer("null_text", torch.zeros(text_tokens, text_width))
        self.blocks = nn.ModuleList(JointBlock(hidden_size, num_heads, mlp_ratio, last=k == depth) for k in range(1, depth + 1))
        self.final_layer = FinalLayer(hidden_size, patch_size * patch_size * in_channels)
        self.routing = None
        if init_rule == "adaln_zero":
            self.initialise_as_dit()

    @property
    def reads(self) -> tuple[str, ...]:
        return (TEXT,)

    def condition(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch[TEXT]

    def null(self, y: Tensor) -> Tensor:
        return self.null_text.to(y.dtype).expand_as(y)

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
        """See `Backbone`. Raises ValueError for an extra token, for keys and values from outside, and for text of another shape."""
        if extra is not None or replaced:
            raise ValueError(f"{'replaced' if extra is None else 'extra'}: an MMDiT has no extra token, and takes no keys and values from outside")
        if y.shape[1:] != self.null_text.shape:
            raise ValueError(f"y: text of shape {tuple(y.shape)}; this model reads (samples, {', '.join(map(str, self.null_text.shape))})")
        self.check_blocks(taps)
        if label_drop is not None:
            y = torch.where(label_drop[:, None, None], self.null(y), y)
        streams, hidden = (self.x_embedder(x) + self.pos_embed, self.context_embedder(y.to(self.context_embedder.weight.dtype))), dict[int, Tensor]()
        c_BD = self.t_embedder(t)
        for k, block in enumerate(self.blocks, start=1):
            if -k in taps:
                streams, hidden[-k] = self.run_block(block, streams, c_BD, True)
            else:
                streams = self.run_block(block, streams, c_BD)
            if k in taps:
                hidden[k] = streams[0]
            if stop and k == max(map(abs, taps)) < len(self.blocks):
                return None, hidden
        out_BTF = self.final_layer(streams[0], c_BD)
        return self.unpatchify(out_BTF), hidden
