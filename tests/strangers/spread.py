"""A stranger's alignment without a target: the tokens of one image are pushed apart (a dispersive loss within the image)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gsnr.options import option
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    temperature: float = option(0.5, "of the softmax over pairs of tokens", above=0)


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.temperature = config.temperature

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        assert self.tap is not None
        unit_BTD = F.normalize(hidden[self.tap].float(), dim=-1)
        return (unit_BTD @ unit_BTD.transpose(1, 2) / self.temperature).flatten(1).logsumexp(1)
