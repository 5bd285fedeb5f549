"""Backbone: what trainer, samplers and probes know of a velocity model, whatever it is conditioned on.

Shapes: B batch, C latent channels, H = W latent side, P patch, T = (H/P)^2 tokens, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gsnr.train.models.layers import PatchEmbed, TimestepEmbedder, Velocity
from gsnr.train.models.routing import Routing

NOTHING: Mapping[int, Tensor] = MappingProxyType({})


class Backbone(ModelMixin, ConfigMixin, ABC):
    """model(x, t, y) -> velocity; x (B,C,H,W), t (B,) in [0, 1] with t = 1 noise, y the condition, velocity (B,C,H,W).

    A diffusers model (`save_pretrained`, `from_pretrained`). condition(batch) is y of a batch, null(y) that of no condition, of as many samples.
    checkpointing: compute the blocks' activations again in backward. has_extra: it has an extra token; routing: see `gsnr.train.models.routing`."""

    patch_size: int
    grid: int  # tokens a side
    pos_embed: Tensor
    x_embedder: PatchEmbed
    t_embedder: TimestepEmbedder
    blocks: nn.ModuleList
    routing: Routing | None
    has_extra = False
    checkpointing = False

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """What it reads of the cache beside latents and labels."""

    @abstractmethod
    def condition(self, batch: Mapping[str, Tensor]) -> Tensor:
        """y of a batch (`gsnr.train.data.batches`)."""

    @abstractmethod
    def null(self, y: Tensor) -> Tensor:
        """The null condition, of the shape of y."""

    @abstractmethod
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
        """(velocity, {k: h_BTD after block k; -k: its queries, keys and values, (B,T,3D)}), of the patches alone. With `stop`, nothing above the last
        tap is computed; the velocity is None unless the last tap is the last block. label_drop: bool (B,), True where the condition is the null one.

        Raises ValueError for a tap outside 1..depth, and for what the model does not have."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor, label_drop: Tensor | None = None, extra: Tensor | None = None) -> Velocity:
        """Velocity. label_drop: bool (B,), True where the null condition is taken. extra: (B,E), of a model with an extra token."""
        velocity, _ = self.forward_with_taps(x, t, y, label_drop, extra=extra)
        assert velocity is not None
        return velocity

    def unpatchify(self, tokens_BTF: Tensor) -> Tensor:
        """(B, T, P*P*C) -> (B,C,H,W)."""
        p, g = self.patch_size, self.grid
        x = tokens_BTF.view(len(tokens_BTF), g, g, p, p, -1)
        return torch.einsum("bhwpqc->bchpwq", x).reshape(len(tokens_BTF), -1, g * p, g * p)

    def check_blocks(self, numbers: Iterable[int]) -> None:
        """Raises ValueError for a tap of no block."""
        bad = [k for k in numbers if not 1 <= abs(k) <= len(self.blocks)]
        if bad:
            raise ValueError(f"tap {bad[0]} does not exist: this model has blocks 1 to {len(self.blocks)}")

    def run_block(self, block: nn.Module, *inputs: Any) -> Any:
        recompute = self.checkpointing and torch.is_grad_enabled()
        return checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)

    def initialise_as_dit(self) -> None:
        """Xavier for linear layers, 0.02 for embeddings, zero for every modulation and for the output (Peebles and Xie 2023)."""
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


def check_sizes(input_size: int, patch_size: int, hidden_size: int, num_heads: int) -> None:
    """Raises ValueError for sizes that do not divide one another."""
    if input_size % patch_size:
        raise ValueError(f"model: input_size {input_size} is not a multiple of patch_size {patch_size}")
    if hidden_size % num_heads or hidden_size % 4:
        raise ValueError(f"model: hidden_size {hidden_size} must be a multiple of num_heads {num_heads} and of 4")
