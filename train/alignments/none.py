"""No alignment: vanilla SiT (Ma et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsnr.options import option
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.0, "there is no alignment loss")

    def for_depth(self, depth: int) -> Config:
        if self.tap is not None:
            raise ValueError(f"alignment.tap {self.tap}: alignment 'none' has no tap; choose another alignment")
        return self

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        return {}


class Alignment(AlignmentModule):
    parts = ()

    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        return torch.zeros_like(batch["t"])
