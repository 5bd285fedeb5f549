"""Attention: the model's attention looks where the teacher's does (HASTE, Wang et al. 2025, arXiv 2505.16792, its attention half).

For each pair of a block and a teacher's layer, the mean over heads and queries of -sum_key P log Q: P and Q softmaxes over the patch tokens as
keys, of the teacher's logits and of the model's. A loss is the mean over pairs. Heads are paired in order, as many as both have: the first 12 of
XL's 16 with those of DINOv2-B. No projector. The teacher runs in the loop, on the cache's pictures (`gsnr prepare --features online`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import PICTURE, Batch
from gsnr.train.models.backbone import Backbone

if TYPE_CHECKING:
    from gsnr.train.teacher_attention import AttentiveTeacher

LAYERS = {12: (8, 10, 12)}  # depth of the model: the teacher's layers (HASTE's B)
OTHERS = (9, 10, 11, 12)  # HASTE's L and XL

LABEL = "HASTE attention"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.5, "factor of the alignment loss beside the velocity loss (HASTE)")
    layers: tuple[int, ...] = option(
        (), "the teacher's layers, from 1, for as many blocks, the tap the last (default: 8,10,12 of B, else 9,10,11,12)"
    )

    @property
    def pictures(self) -> bool:
        return True

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        return {name: {}}

    @staticmethod
    def default_tap(depth: int) -> int:
        """The last of HASTE's blocks: 5 of B, 8 of L and XL; else in proportion to B's (ours)."""
        return 8 if depth in (24, 28) else max(1, round(depth * 5 / 12))

    def for_depth(self, depth: int) -> Config:
        resolved = super().for_depth(depth)
        assert resolved.tap is not None
        layers = self.layers or LAYERS.get(depth, OTHERS)[-resolved.tap :]
        if min(layers) < 1 or len(layers) > resolved.tap:
            raise ValueError(f"alignment.layers {','.join(map(str, layers))}: numbers from 1, at most as many as the tap, {resolved.tap}")
        return replace(resolved, layers=layers)


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        assert config.tap is not None
        first = config.tap - len(config.layers) + 1
        self.pairs = {-(first + i): layer for i, layer in enumerate(config.layers)}  # tap of a block's queries and keys: teacher's layer
        self.grid, self.heads = model.grid, model.num_heads
        self.teacher: AttentiveTeacher | None = None

    @property
    def extra_taps(self) -> tuple[int, ...]:
        return tuple(self.pairs)

    def attach(self, teacher: AttentiveTeacher) -> None:
        if max(self.pairs.values()) > teacher.depth:
            raise ValueError(f"alignment.layers {max(self.pairs.values())}: teacher {teacher.teacher.name!r} has layers 1 to {teacher.depth}")
        self.teacher = teacher

    def prepare(self, batch: Batch, ema: Backbone) -> Batch:
        assert self.teacher is not None, "attach a teacher first"
        found = self.teacher.qkv(batch[PICTURE], tuple(self.pairs.values()), self.grid)
        return batch | {f"teacher_qkv_{layer}": qkv_BTE for layer, qkv_BTE in found.items()}

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        assert self.teacher is not None, "attach a teacher first"
        each = []
        for tap, layer in self.pairs.items():
            wanted = batch[f"teacher_qkv_{layer}"].detach()
            each.append(losses.attention_cross_entropy(hidden[tap], self.heads, wanted, self.teacher.heads))
        return torch.stack(each).mean(0)
