"""Pooled: the mean of the projected states is pulled to one vector of the image (the second target of REED, Wang et al. 2025, arXiv 2507.08980).

REED's vector is layer 15 of Qwen2-VL-7B on a caption of the image, averaged: group `vlm` of a cache, (1,C,1,1). A group of a larger grid is
averaged over it. The loss is 1 - cos of the two vectors. No code of REED has a licence; head and cosine are REPA's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.alignments.repa import Config as RepaConfig
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.projectors import repa

LABEL = "REED's second"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.25, "factor of the alignment loss beside the velocity loss (REED: 0.5 of 0.5)")
    source: str = option("vlm", "group of the cache; vlm: vectors of a vision-language model, (1,C,1,1), which gsnr prepare does not make")
    projector_width: int = option(2048, "of the two hidden layers of the head (REPA's)", low=1, high=2**16)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.source,)

    def target_name(self, name: str) -> str:
        return f"{name}_{self.source}"

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """The teacher's mean, too: a control of how much of a vector lies in where its tokens are."""
        width = RepaConfig.targets(name, model, own)[name]
        return {f"{name}_{source}": width | {"source": source} for source in ("vlm", "teacher")}

    @staticmethod
    def default_tap(depth: int) -> int:
        """REED's 16 of L and XL; else three quarters of the depth (ours)."""
        return min(16, max(1, depth - depth // 4))


class Alignment(TargetAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.source = config.source
        self.projector = repa.Projector(model.hidden_size, groups[config.source][1], model.grid, config.projector_width)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        """The vector, once for each token."""
        vector_BC = batch[self.source][:, 0].detach().float().mean((2, 3))
        return vector_BC.unsqueeze(1).expand(-1, h_BTD.shape[1], -1)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.cosine(projected_BTC.float().mean(1, keepdim=True), target_BTC.float().mean(1, keepdim=True))
