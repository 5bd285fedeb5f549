"""SRA 2: the clean VAE latent itself, patchified (Wang et al. 2026, "SRA 2: Variational Autoencoder Self-Representation Alignment")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.projectors import mlp5

BLOCKS = {12: 2, 24: 8, 28: 8}  # depth: tap (SRA 2's B, L and XL)

LABEL = "SRA 2"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    @staticmethod
    def default_tap(depth: int) -> int:
        """2 of B, 8 of L and XL; else a sixth of the depth, as in B."""
        return BLOCKS.get(depth, max(1, round(depth / 6)))


class Alignment(TargetAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.patch = model.patch_size
        self.projector = mlp5.Projector(model.hidden_size, model.in_channels * self.patch**2, model.grid)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        return F.unfold(batch["latent"].float(), self.patch, stride=self.patch).transpose(1, 2)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.smooth_l1(projected_BTC, target_BTC)
