"""Alignments: what a hidden state is pulled towards. One file each, found by name; a file has

    class Config                           frozen dataclass: its options and their defaults, each with its source
    class Alignment(AlignmentModule)       built as Alignment(config, hidden_size=..., grid=..., groups=...)
    def default_tap(depth) -> int          where Config has a `tap` that may be None: the block for a model of this depth

Shapes: B samples, T tokens, D backbone width, C target channels, K mixture weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from train.data.batches import Batch


class AlignmentModule(nn.Module, ABC):
    """What the trainer and the probes call. tap: 1-based block, None for no alignment at all; weight: lambda of the total loss;
    needs: the VAE feature groups that `target` reads from a batch; projector: the trainable head that a probe may fit anew."""

    tap: int | None
    weight: float
    needs: tuple[str, ...]
    projector: nn.Module

    @abstractmethod
    def target(self, batch: Batch, t_B: Tensor) -> Tensor:
        """(B,T,C) alignment target; gradients flow into the router, never into the VAE."""

    @abstractmethod
    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        """(B,) float32: how far a projected hidden state is from its target, one value per sample."""

    def loss(self, h_BTD: Tensor, batch: Batch) -> Tensor:
        """(B,) float32: the discrepancy of the projected hidden state from the batch's target."""
        return self.discrepancy(self.projector(h_BTD), self.target(batch, batch["t"]))

    def router_weights(self, t_B: Tensor) -> dict[str, Tensor]:
        """name -> (B,K) learned mixture weights; {} where nothing is learned."""
        return {}
