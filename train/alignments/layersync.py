"""LayerSync: an earlier block is pulled towards a later block of the same forward pass (Haghighi et al. 2026, arXiv 2510.12581).

No teacher, no projector. Its loss is the negative cosine; ours is larger by the constant 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gsnr.options import option
from gsnr.train import losses
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.config import DEEPEST, ModelConfig
from gsnr.train.data.batches import Batch

LABEL = "LayerSync"


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    weight: float = option(0.2, "factor of the alignment loss beside the velocity loss (LayerSync)")
    target_tap: int | None = option(None, "block that is the target (default: 16 of XL, in proportion else, and behind the tap)", low=1, high=DEEPEST)

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        return {name: {}} if model.depth > 1 else {}

    @staticmethod
    def default_tap(depth: int) -> int:
        """8 of L and XL; else in proportion to XL's (ours)."""
        return 8 if depth in (24, 28) else max(1, round(depth * 8 / 28))

    def for_depth(self, depth: int) -> Config:
        """The target is the later block; of a tap that is the last block, the block before."""
        resolved = super().for_depth(depth)
        assert resolved.tap is not None
        behind = max(round(depth * 16 / 28), min(resolved.tap + 1, depth))
        default = behind if behind != resolved.tap else depth - 1
        target = default if self.target_tap is None else self.target_tap
        if not 1 <= target <= depth or target == resolved.tap:
            raise ValueError(f"alignment.target_tap {target}: must be a block of 1 to {depth} other than the tap, {resolved.tap}")
        return replace(resolved, target_tap=target)


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        assert config.tap is not None and config.target_tap is not None
        self.target_tap = config.target_tap

    @property
    def extra_taps(self) -> tuple[int, ...]:
        return (self.target_tap,)

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        assert self.tap is not None
        return losses.cosine(hidden[self.tap], hidden[self.target_tap].detach())
