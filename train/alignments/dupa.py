"""DUPA: two noised views of an image have the same hidden states (ICLR 2026, openreview ALpn1nQj5R; no code is public).

The views share image, latent and label, and differ in t and noise. The loss is 1 - cos of the projected states, the mean over tokens and pairs of
views; its gradient goes through both. No teacher. A sample is an image with its views: `--batch` counts views, so at equal batch a step takes as
many forward passes as any other, on half the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.alignments.repa import Config as RepaConfig
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.projectors import repa

OUT = 768  # channels of the projected states, as of REPA's head
GAIN = 0.5  # of the head's last layers: DUPA reduces it, by how much is not public

LABEL = "DUPA"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.5, "factor of the alignment loss beside the velocity loss (DUPA; 0.25 to 1 do as well there)")
    views: int = option(2, "(t, noise) views of an image (DUPA; it gains a little from more)", low=2, high=16)
    projector_width: int = option(2048, "of the two hidden layers of the head (DUPA's is not public; REPA's)", low=1, high=2**16)

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """None: it has no value of a single view."""
        return {}

    @staticmethod
    def default_tap(depth: int) -> int:
        """As REPA: 8 of L, which is DUPA's."""
        return RepaConfig.default_tap(depth)


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.projector = repa.Projector(model.hidden_size, OUT, model.grid, config.projector_width)
        first, *others = [m for m in self.projector.modules() if isinstance(m, nn.Linear)]
        nn.init.kaiming_normal_(first.weight)
        for layer in others:
            nn.init.xavier_uniform_(layer.weight, gain=GAIN)

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        assert self.tap is not None
        views_KBTC = self.projector(hidden[self.tap].flatten(0, 1)).unflatten(0, (-1, self.views)).unbind(1)
        return torch.stack([losses.cosine(a, b) for a, b in combinations(views_KBTC, 2)]).mean(0)
