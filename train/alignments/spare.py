"""SPARE, its part within the image: tokens are as close to one another as those of the clean latent (arXiv 2608.01990).

For each token i, P_i is the softmax over j of y_i . y_j / tau, y the patches of the clean latent at unit length, and Q_i that of the hidden
state; the loss is the mean over i of KL(P_i || Q_i). No teacher, no projector. SPARE's part across images is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.alignments.repa import Config as RepaConfig
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch

LABEL = "SPARE"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.5, "factor of the alignment loss beside the velocity loss (SPARE's is not public; ours)")
    temperature: float = option(0.1, "tau, of both softmaxes (SPARE's is not public; ours)", low=1e-3, high=1e3)

    @staticmethod
    def default_tap(depth: int) -> int:
        """As REPA (SPARE's is not public)."""
        return RepaConfig.default_tap(depth)


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.patch, self.temperature = model.patch_size, config.temperature

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        assert self.tap is not None
        patches_BTC = F.unfold(batch["latent"].detach().float(), self.patch, stride=self.patch).transpose(1, 2)
        wanted_BTT = (losses.similarities(patches_BTC) / self.temperature).log_softmax(-1)
        found_BTT = (losses.similarities(hidden[self.tap]) / self.temperature).log_softmax(-1)
        return (wanted_BTT.exp() * (wanted_BTT - found_BTT)).sum(-1).mean(-1)
