"""Gram: the similarities between the tokens of an image are those of the teacher's tokens (sREPA, arXiv 2605.16949).

Tokens of unit length, z of the projected hidden state and y of the teacher; the loss is mean_ij (z_i . z_j - y_i . y_j)^2. Where a token lies
is in it, what its features mean is not: any rotation of them is as good. No code of sREPA is public; head and weight are REPA's.
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

LABEL = "sREPA"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.5, "factor of the alignment loss beside the velocity loss (sREPA's is not public; REPA's)")
    projector_width: int = option(2048, "of the two hidden layers of the head (sREPA's is not public; REPA's)", low=1, high=2**16)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("teacher",)

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        return RepaConfig.targets(name, model, own)

    @staticmethod
    def default_tap(depth: int) -> int:
        """As REPA."""
        return RepaConfig.default_tap(depth)


class Alignment(TargetAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.projector = repa.Projector(model.hidden_size, groups["teacher"][1], model.grid, config.projector_width)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        return batch["teacher"][:, 0].detach().float().flatten(2).transpose(1, 2)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.gram(projected_BTC, target_BTC)
