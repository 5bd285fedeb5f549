"""REPA: patch tokens of a frozen image teacher, DINOv2-B in the paper (Yu et al. 2025, "Representation Alignment for Generation").

With class_token the model's extra token is aligned too, to the teacher's class token, one token of T + 1 (REG, Wu et al. 2025, arXiv 2507.01467).

The cache holds the teacher's tokens (`gsnr prepare --teacher facebook/dinov2-base`). REPA's loss is the negative cosine; ours
is larger by the constant 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.config import CLASS_TOKEN, ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.models.sit import extra_of
from gsnr.train.noising import class_token
from gsnr.train.projectors import repa

WIDEST = 2**16  # nobody means a wider head

LABEL = "REPA"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.5, "factor of the alignment loss beside the velocity loss (REPA's --proj-coeff)")
    projector_width: int = option(2048, "of the two hidden layers of REPA's MLP head (its projector_dim)", low=1, high=2**16)
    class_token: bool = option(False, "align the model's class token too, as REG does; for a model with --model.extra-token")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("teacher", *([CLASS_TOKEN] if self.class_token else []))

    def over_patches(self) -> Config:
        return replace(self, class_token=False)

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """The head is 2048 wide for widths of 768 and more, and in proportion below."""
        return {name: {"projector_width": min(2048, model.hidden_size * 8 // 3)}}

    @staticmethod
    def default_tap(depth: int) -> int:
        """REPA's --encoder-depth: 4 of B, 8 of L and XL."""
        return max(1, min(8, round(depth / 3)))


class Alignment(TargetAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        if not 1 <= config.projector_width <= WIDEST:
            raise ValueError(f"alignment.projector_width {config.projector_width}: must be between 1 and {WIDEST}")
        self.class_token = config.class_token
        if self.class_token and model.extra_token is None:
            raise ValueError("alignment.class_token: this model has no class token; give it one with --model.extra-token")
        self.projector = repa.Projector(model.hidden_size, groups["teacher"][1], model.grid, config.projector_width)

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        """Over the patches; with class_token over [class token; patches]."""
        if not self.class_token:
            return super().loss(hidden, batch)
        assert self.tap is not None
        h_BTD = torch.cat([hidden[extra_of(self.tap)], hidden[self.tap]], dim=1)
        target_BTC = torch.cat([class_token(batch).unsqueeze(1), self.target(batch, hidden[self.tap])], dim=1)
        return self.discrepancy(self.projector(h_BTD), target_BTC)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        """Of the patches alone, which is what probes fit and compare."""
        return batch["teacher"][:, 0].detach().float().flatten(2).transpose(1, 2)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.cosine(projected_BTC, target_BTC)
