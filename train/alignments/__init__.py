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
    needs: the VAE feature groups that `target` reads from a batch; projector and router: its two trainable parts."""

    tap: int | None
    weight: float
    needs: tuple[str, ...]
    projector: nn.Module
    router: nn.Module

    @abstractmethod
    def target(self, batch: Batch, t_B: Tensor) -> Tensor:
        """(B,T,C) alignment target; gradients flow into the router, never into the VAE."""

    @abstractmethod
    def project(self, h_BTD: Tensor) -> Tensor:
        """(B,T,C) projected hidden state."""

    @abstractmethod
    def loss(self, h_BTD: Tensor, batch: Batch) -> Tensor:
        """(B,) float32: how far the projected hidden state is from the target, one value per sample."""

    @abstractmethod
    def router_weights(self, t_B: Tensor) -> dict[str, Tensor]:
        """name -> (B,K) mixture weights; {} where nothing is mixed."""
