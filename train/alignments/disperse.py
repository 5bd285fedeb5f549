"""Disperse: the hidden states of a batch are pushed apart (Wang and He 2025, "Diffuse and Disperse", arXiv 2506.09027).

log mean_ij exp(-D_ij / tau), D_ij = ||h_i - h_j||^2 / (T D), over all pairs of the batch, i = j included. No target, no teacher. A sample's
loss reads the other samples: it depends on the batch that a process computes at once (--batch / processes / --accumulate; the paper's code has
16 in JAX and 32 in PyTorch), and per-sample gradients of it are not defined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gsnr.options import option
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.losses import full_precision

LABEL = "Disperse"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.5, "factor of the alignment loss beside the velocity loss (its JAX code; 0.25 in PyTorch, of the last block)")
    temperature: float = option(0.5, "tau (its JAX code; 1 in PyTorch)", low=1e-3, high=1e3)

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        return {}


class Alignment(AlignmentModule):
    coupled = True

    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        self.temperature = config.temperature

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        """The batch's loss, once for each of its samples. Distances are those of the centred states: less of them is lost in rounding."""
        assert self.tap is not None
        with full_precision(hidden[self.tap].device):
            z_BF = hidden[self.tap].float().flatten(1)
            z_BF = z_BF - z_BF.mean(0)
            square_B = z_BF.square().sum(1)
            distance_BB = (square_B[:, None] + square_B - 2 * z_BF @ z_BF.T).clamp_min(0) / z_BF.shape[1]
            logits = -distance_BB / self.temperature
            return (logits.flatten().logsumexp(0) - 2 * math.log(len(z_BF))).expand(len(z_BF))
