"""RARE: whitened features of a layer, less what the layer below tells, where the model is still far off (arXiv 2609.34732; no code is public).

The target is the layer, whitened to `rank` directions over the train split, and spatially normalised (gamma 0.6). Where the layer has another
below it in its group of the cache, the target is its increment: what a ridge regression on the layer below does not predict. (The group `teacher`
is one layer, so there it is the layer itself.) The loss is the mean over tokens of w_k (1 - cos_k), w_k in proportion to the token's own 1 - cos_k,
between a quarter and four times the mean: `losses.residual_cosine`. RARE lets go of it by a rule: train with `--stop-rule plateau`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsnr import plugins
from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, TargetAlignment
from gsnr.train.alignments.repa import Config as RepaConfig
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import order
from gsnr.train.priors.normalise import spatial
from gsnr.train.priors.whiten import Matrix, Moments, chosen, whitening

TOGETHER = 256  # images read at once
SET_ASIDE = 8  # one image in so many chooses penalty and rank

LABEL = "RARE"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(1.0, "factor of the alignment loss beside the velocity loss (RARE's lambda_0)")
    source: str = option("teacher", "group of the cache", ("teacher", "G1", "G2", "G3", "G4"))
    layer: int = option(0, "of the group, from 1; 0: its last", low=0, high=2**10)
    rank: int = option(128, "directions that a layer is whitened to, or all of its channels (RARE)", low=1, high=2**12)
    images: int = option(4096, "train images that the whitening and the regression are fitted on (RARE: 20,000)", low=16, high=2**30)
    projector: str = option("conv3x3", "head on the hidden state", "projectors")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.source,)

    def target_name(self, name: str) -> str:
        return name if self.source == "teacher" else f"{name}_{self.source}"

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """The teacher's layer, and the increments of the last layers of the VAE."""
        return {name: {}, f"{name}_G4": {"source": "G4"}}

    @staticmethod
    def default_tap(depth: int) -> int:
        """As REPA (RARE keeps the convention)."""
        return RepaConfig.default_tap(depth)


class Alignment(TargetAlignment):
    """Buffers, which lie in the checkpoint: own_CR, below_CR and shift_R, with which the target is own^T f_i + below^T f_j + shift."""

    own_CR: Tensor
    below_CR: Tensor
    shift_R: Tensor

    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        layers, channels = groups[config.source][:2]
        if config.layer > layers:
            raise ValueError(f"alignment.layer {config.layer}: group {config.source} has layers 1 to {layers}")
        self.source, self.images = config.source, config.images
        top = (config.layer or layers) - 1
        self.used = [top] if top == 0 else [top - 1, top]  # places in the group: the layer below first, where there is one
        rank = min(config.rank, channels)
        for name, shape in (("own_CR", (channels, rank)), ("below_CR", (channels, rank)), ("shift_R", (rank,))):
            self.register_buffer(name, torch.full(shape, torch.nan))
        self.projector = plugins.find("projectors", config.projector).Projector(model.hidden_size, rank, model.grid)

    def calibrate(self, train: Split) -> None:
        """Fits whitening and regression on the first images in a fixed random order. Raises ValueError for a split of one image."""
        if train.size < 2:
            raise ValueError(f"alignment 'rare': is fitted on train images, some of them set aside; {train.header.data!r} has {train.size}")
        rank = self.shift_R.shape[0]
        sums = self._moments(train)
        whole = sums[0] + sums[1]
        covariance, channels = whole.about(whole.mean), len(self.own_CR)
        maps = [whitening(covariance[part, part], rank) for part in (slice(i * channels, (i + 1) * channels) for i in range(len(self.used)))]
        own = maps[-1]
        below = np.zeros_like(own)
        if len(maps) == 2:
            both = np.zeros((2 * channels, 2 * rank))
            both[:channels, :rank], both[channels:, rank:] = maps
            solves, chooses = (both.T @ part.about(whole.mean) @ both for part in sums)
            below = -maps[0] @ chosen(solves, chooses, rank)
        stacked = np.concatenate([below, own]) if len(maps) == 2 else own
        fitted = {self.own_CR: own, self.below_CR: below, self.shift_R: -whole.mean @ stacked}
        for buffer, value in fitted.items():
            buffer.copy_(torch.from_numpy(value))

    def _moments(self, train: Split) -> tuple[Moments, Moments]:
        """Of the tokens of the images that are solved from, and of those that choose."""
        parts: list[list[Moments]] = [[], []]
        for chunk, x_NC in self._tokens(train):
            aside = np.arange(len(x_NC)) % SET_ASIDE == chunk % SET_ASIDE
            for part, mask in zip(parts, (~aside, aside), strict=True):
                part.append(Moments.of(x_NC[mask].reshape(-1, x_NC.shape[-1])))
        solves, chooses = (sum(part[1:], part[0]) for part in parts)
        return solves, chooses

    def _tokens(self, train: Split) -> Iterator[tuple[int, Matrix]]:
        """(number of a chunk, (images, T, C or 2 C) features of the layers that are used, side by side)."""
        index = order(train.size)[: self.images]
        for chunk, start in enumerate(range(0, len(index), TOGETHER)):
            f_NLCgg = train.take(np.sort(index[start : start + TOGETHER]), (self.source,))[self.source][:, self.used]
            n, layers, channels = f_NLCgg.shape[:3]
            yield chunk, f_NLCgg.reshape(n, layers * channels, -1).transpose(0, 2, 1).astype(np.float64)

    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        with losses.full_precision(h_BTD.device):
            f_BLCgg = batch[self.source].detach().float()[:, self.used]
            x_BggR = f_BLCgg[:, -1].movedim(1, -1) @ self.own_CR + self.shift_R
            if len(self.used) == 2:
                x_BggR = x_BggR + f_BLCgg[:, 0].movedim(1, -1) @ self.below_CR
            return spatial(x_BggR.movedim(-1, 1)).flatten(2).transpose(1, 2)

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        return losses.residual_cosine(projected_BTC, target_BTC)
