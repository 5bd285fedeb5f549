"""A stranger's alignment: REPA's target, by the mean absolute difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gsnr import plugins
from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch

LABEL = "REPA by L1"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    projector: str = option("wide", "head on the hidden state", "projectors")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("teacher",)


class Alignment(TargetAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.projector = plugins.find("projectors", config.projector).Projector(model.hidden_size, groups["teacher"][1], model.grid)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        return batch["teacher"][:, 0].detach().float().flatten(2).transpose(1, 2)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.l1(projected_BTC, target_BTC)
