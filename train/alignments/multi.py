"""Multi: several alignments at once, each with a tap, target, projector and weight of its own (AHPA Table 1, "Multi").

    --alignment multi --alignment.parts '[{"name": "uniform", "source": "deep", "tap": 3}, {"name": "sra2", "tap": 8, "weight": 0.5}]'

The loss is the weighted sum of the parts' losses, times the weight of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gsnr import plugins
from gsnr.options import build, option
from gsnr.train.alignments import AlignmentConfig, AlignmentModule
from gsnr.train.config import ModelConfig
from gsnr.train.data.batches import Batch
from gsnr.train.data.cache import Split
from gsnr.train.models.backbone import Backbone

if TYPE_CHECKING:
    from gsnr.train.teacher_attention import AttentiveTeacher


def _config(part: dict[str, Any]) -> AlignmentConfig:
    """One part's options as its own Config. Raises ValueError for an unknown alignment or option."""
    name = part.get("name") or "none"
    if name in ("none", "multi"):
        raise ValueError('alignment.parts: each part names an alignment, {"name": "uniform", ...}, that is neither none nor multi')
    return build(plugins.find("alignments", name).Config, {key: value for key, value in part.items() if key != "name"}, "alignment.parts.")


@dataclass(frozen=True, kw_only=True)
class Config(AlignmentConfig):
    parts: tuple[dict, ...] = option((), "the alignments with their options, as a JSON list")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group for part in self.parts for group in _config(part).needs))

    @property
    def pictures(self) -> bool:
        return any(_config(part).pictures for part in self.parts)

    @property
    def scaffold(self) -> int:
        return max((_config(part).scaffold for part in self.parts), default=0)

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """None: its parts are compared one by one."""
        return {}

    def for_depth(self, depth: int) -> Config:
        if self.tap is not None:
            raise ValueError("alignment.tap: alignment 'multi' has a tap in each of its parts")
        if not self.parts:
            raise ValueError('alignment.parts is missing: a JSON list of alignments, [{"name": "uniform", "source": "deep", "tap": 3}, ...]')
        resolved: list[dict[str, Any]] = [{"name": part.get("name")} | asdict(_config(part).for_depth(depth)) for part in self.parts]
        if sum(_config(part).scaffold > 0 for part in resolved) > 1:
            raise ValueError("alignment.parts: more than one part replaces keys and values of a block")
        for part in resolved:
            if (views := _config(part).views) > 1:
                raise ValueError(f"alignment.parts: {part['name']!r} reads {views} views of an image, and goes with no other")
            if not 1 <= part["tap"] <= depth:
                raise ValueError(f"alignment.parts: tap {part['tap']} of {part['name']!r}: this model has blocks 1 to {depth}")
            if not 0 <= part["weight"] < float("inf"):
                raise ValueError(f"alignment.parts: weight {part['weight']} of {part['name']!r} must be a number of at least 0")
        return replace(self, parts=tuple(resolved))


class Alignment(AlignmentModule):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config)
        built = [plugins.find("alignments", part["name"]).Alignment(_config(part), model, groups) for part in config.parts]
        self.each = nn.ModuleList(built)
        self.coupled = any(part.coupled for part in built)

    @property
    def parts(self) -> tuple[AlignmentModule, ...]:
        return tuple(part for part in self.each if isinstance(part, AlignmentModule))

    def attach(self, teacher: AttentiveTeacher) -> None:
        for part in self.parts:
            part.attach(teacher)

    def prepare(self, batch: Batch, ema: Backbone) -> Batch:
        for part in self.parts:
            batch = part.prepare(batch, ema)
        return batch

    def replaces(self, batch: Batch, step: int) -> dict[int, Tensor]:
        return {block: kv for part in self.parts for block, kv in part.replaces(batch, step).items()}

    def calibrate(self, train: Split) -> None:
        for part in self.parts:
            part.calibrate(train)

    @property
    def rates(self) -> dict[float, list[nn.Parameter]]:
        rates: dict[float, list[nn.Parameter]] = {}
        for factor, parameters in (item for part in self.parts for item in part.rates.items()):
            rates.setdefault(factor, []).extend(parameters)
        return rates

    def held(self, step: int) -> list[nn.Parameter]:
        return [p for part in self.parts for p in part.held(step)]

    def guide(self, accelerator: Accelerator, objective: nn.Module, batch: Batch, step: int) -> None:
        for part in self.parts:
            part.guide(accelerator, objective, batch, step)

    def router_weights(self, t_B: Tensor) -> dict[str, Tensor]:
        """Those of the first part that has any."""
        return next((weights for part in self.parts if (weights := part.router_weights(t_B))), {})

    def loss(self, hidden: dict[int, Tensor], batch: Batch) -> Tensor:
        return torch.stack([part.weight * part.loss(hidden, batch) for part in self.parts]).sum(0)
