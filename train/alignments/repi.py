"""REPI: a block is first given keys and values made of a teacher's, and later makes them itself (arXiv 2609.35292).

In the first `scaffold` steps the keys and values of one block are linear maps of those of the teacher's last layer; the velocity loss trains the
maps. Then the block has its own again, and the loss is the mean squared error of its keys plus that of its values to the maps' output, which no
longer learn. In the first steps that error is exactly 0. The maps have a bias, as the block's own (ours). The teacher runs in the loop, on the
cache's pictures (`gsnr prepare --features online`). Evaluation, sampling and probes have the model as it is in the later steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gsnr.options import option
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import PICTURE, Batch
from gsnr.train.data.cache import TEACHER
from gsnr.train.models.backbone import Backbone

if TYPE_CHECKING:
    from gsnr.train.teacher_attention import AttentiveTeacher

SEEN = "teacher_kv"  # of a batch: keys and values of the teacher's last layer, (B,T,2C)

LABEL = "REPI"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(2.0, "factor of the alignment loss beside the velocity loss (REPI's lambda)")
    scaffold: int = option(20_000, "first steps, in which the block has the maps' keys and values (REPI)", low=1, high=10**9)

    @property
    def pictures(self) -> bool:
        return True

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """None: its target is what the maps have learned."""
        return {}

    @staticmethod
    def default_tap(depth: int) -> int:
        """6 of B, 8 of L and XL; else in proportion to B's (ours)."""
        return 8 if depth in (24, 28) else max(1, round(depth / 2))


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        assert config.tap is not None
        if TEACHER not in groups:
            raise ValueError(
                "alignment 'repi' reads a teacher's keys and values; the cache has no teacher (gsnr prepare --teacher --features online)"
            )
        self.block, self.scaffold, self.grid, self.width = config.tap, config.scaffold, model.grid, groups[TEACHER][1]
        self.keys = nn.Linear(self.width, model.hidden_size)
        self.values = nn.Linear(self.width, model.hidden_size)
        self.teacher: AttentiveTeacher | None = None

    @property
    def extra_taps(self) -> tuple[int, ...]:
        return (-self.block,)

    def attach(self, teacher: AttentiveTeacher) -> None:
        if teacher.width != self.width:
            raise ValueError(f"teacher {teacher.teacher.name!r} has keys of width {teacher.width}; the cache's features of it have {self.width}")
        self.teacher = teacher

    def prepare(self, batch: Batch, ema: Backbone) -> Batch:
        assert self.teacher is not None, "attach a teacher first"
        last = self.teacher.depth
        return batch | {SEEN: self.teacher.qkv(batch[PICTURE], (last,), self.grid)[last][..., self.width :]}

    def mapped(self, batch: Batch) -> Tensor:
        """(B,T,2D): the maps of the teacher's keys and values, side by side."""
        keys_BTC, values_BTC = batch[SEEN].detach().chunk(2, -1)
        return torch.cat([self.keys(keys_BTC), self.values(values_BTC)], -1)

    def replaces(self, batch: Batch, step: int) -> dict[int, Tensor]:
        return {self.block: self.mapped(batch)} if step <= self.scaffold else {}

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        _, k_BTD, v_BTD = hidden[-self.block].float().chunk(3, -1)
        wanted_k_BTD, wanted_v_BTD = self.mapped(batch).detach().float().chunk(2, -1)
        return (k_BTD - wanted_k_BTD).square().mean((1, 2)) + (v_BTD - wanted_v_BTD).square().mean((1, 2))
