"""Alignments: what a hidden state is pulled towards. One file each, found by name; a file has

    class Config(AlignmentConfig)          frozen dataclass: its options and their defaults, each with its source
    class Alignment(AlignmentModule)       built as Alignment(config, model, groups); config.tap is a number by then

model: the backbone's ModelConfig; groups: name -> (L,C,g,g) of the feature groups in the cache.
Shapes: B samples, T tokens, D backbone width, C target channels, K mixture weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from gsnr.options import option
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import Split
from gsnr.train.models.sit import SiT


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What all alignments have."""

    tap: int | None = option(None, "block whose output is aligned, from 1 (default: the method's own rule, by the depth of the model)")
    weight: float = option(1.0, "factor of the alignment loss beside the velocity loss")

    @property
    def needs(self) -> tuple[str, ...]:
        """The feature groups of the cache that the target is made of; "teacher" holds those of an image teacher."""
        return ()

    @staticmethod
    def default_tap(depth: int) -> int:
        """The block for a model of this depth. A quarter of it is AHPA's: 3 of B, 6 of L, 7 of XL (Table A.9, Sec. 5.2.1)."""
        return max(1, round(depth / 4))

    def for_depth(self, depth: int) -> Self:
        """Itself with everything filled in that depends on the model's depth."""
        return replace(self, tap=self.default_tap(depth) if self.tap is None else self.tap)


class AlignmentModule(nn.Module, ABC):
    """What the trainer and the probes call. projector: the trainable head, which a probe may fit anew. tap: None for no alignment at all."""

    projector: nn.Module

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()
        self.tap, self.weight, self.needs = config.tap, config.weight, config.needs

    @property
    def parts(self) -> tuple[AlignmentModule, ...]:
        """The single alignments that this one is made of: itself, none, or several."""
        return (self,)

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(part.tap for part in self.parts if part.tap is not None))

    @abstractmethod
    def target(self, batch: Batch, h_BTD: Tensor) -> Tensor:
        """(B,T,C) alignment target. Gradients flow into a router, never into VAE, teacher or (through the target) hidden state h."""

    def normalised(self, group: str, f_BLCgg: Tensor) -> Tensor:
        """Float32 features of one of the groups that it needs, as the target takes them in, layer by layer; the same shape."""
        return f_BLCgg

    @abstractmethod
    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,) float32: how far a projected hidden state is from its target, one value per sample."""

    def prepare(self, batch: Batch, ema: SiT) -> Batch:
        """The batch with what `target` reads beside the cache: hidden states of the model's own moving average. Called without gradients."""
        return batch

    def calibrate(self, train: Split) -> None:
        """Takes constants of the train split (channel means, ...) into buffers, once, before training starts."""

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        """(B,) float32: the discrepancy of the projected hidden state at the tap from the batch's target. hidden: tap -> (B,T,D)."""
        assert self.tap is not None
        h_BTD = hidden[self.tap]
        return self.discrepancy(self.projector(h_BTD), self.target(batch, h_BTD))

    def router_weights(self, t_B: Tensor) -> dict[str, Tensor]:
        """name -> (B,K) learned mixture weights over t; {} where nothing is learned, or not as a function of t alone."""
        return {}
