"""No alignment: vanilla SiT (Ma et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from train.alignments import AlignmentModule
from train.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Config:
    pass


class Alignment(AlignmentModule):
    tap = None
    weight = 0.0
    needs = ()

    def __init__(self, config: Config, *, hidden_size: int, grid: int, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()

    def target(self, batch: Batch, t_B: Tensor) -> Tensor:
        raise ValueError("alignment 'none' has no target")

    def discrepancy(self, projected_BTC: Tensor, target_BTC: Tensor) -> Tensor:
        raise ValueError("alignment 'none' has no loss")
