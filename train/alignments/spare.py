"""SPARE: tokens are as close to one another as those of the clean latent (arXiv 2608.01990; no code is public).

Within the image: for each token i, P_i is the softmax over j of y_i . y_j / tau, y the patches of the clean latent at unit length, and Q_i that of
the hidden state; the loss is the mean over i of KL(P_i || Q_i). No teacher, no projector. Across images (`across`, a share of the loss, off by
default): the same at each position, j the images of a batch; with it the loss is coupled, and depends on the batch that a process computes at once.
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
    across: float = option(0.0, "factor of the part across images, at the same position; above 0 the loss is coupled", low=0, high=1e3)

    @staticmethod
    def default_tap(depth: int) -> int:
        """As REPA (SPARE's is not public)."""
        return RepaConfig.default_tap(depth)


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.patch, self.temperature, self.across = model.patch_size, config.temperature, config.across
        self.coupled = config.across > 0

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        assert self.tap is not None
        patches_BTC = F.unfold(batch["latent"].detach().float(), self.patch, stride=self.patch).transpose(1, 2)
        within_B = self._divergence(patches_BTC, hidden[self.tap]).mean(1)
        if not self.across:
            return within_B
        return within_B + self.across * self._divergence(patches_BTC.transpose(0, 1), hidden[self.tap].transpose(0, 1)).mean(0)

    def _divergence(self, wanted_NMC: Tensor, found_NMD: Tensor) -> Tensor:
        """(N,M): of each of M vectors, KL between the two softmaxes over its cosines with all M."""
        wanted, found = ((losses.similarities(x) / self.temperature).log_softmax(-1) for x in (wanted_NMC, found_NMD))
        return (wanted.exp() * (wanted - found)).sum(-1)
