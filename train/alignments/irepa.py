"""iREPA: REPA with a convolutional projector and a spatially normalised target (Singh et al. 2025).

Its README says a 3x3 convolution and its code's default is 1x1; 3x3 is the default here, conv1x1 the switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gsnr import plugins
from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.alignments.repa import Config as RepaConfig
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.priors.normalise import GAMMA, spatial

LABEL = "iREPA"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(1.0, "factor of the alignment loss beside the velocity loss (its paper's runs; its code defaults to 0.5)")
    projector: str = option("conv3x3", "head on the hidden state", "projectors")
    gamma: float = option(GAMMA, "share of the token mean that is taken away from the teacher's features")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("teacher",)

    @staticmethod
    def default_tap(depth: int) -> int:
        """As REPA."""
        return RepaConfig.default_tap(depth)


class Alignment(TargetAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        if not 0 <= config.gamma <= 1:
            raise ValueError(f"alignment.gamma {config.gamma}: must be between 0 and 1")
        self.gamma = config.gamma
        self.projector = plugins.find("projectors", config.projector).Projector(model.hidden_size, groups["teacher"][1], model.grid)

    def normalised(self, group: str, f_BLCgg: Tensor) -> Tensor:
        return spatial(f_BLCgg, self.gamma)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        return self.normalised("teacher", batch["teacher"].detach().float())[:, 0].flatten(2).transpose(1, 2)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.cosine(projected_BTC, target_BTC)
