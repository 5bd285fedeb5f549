"""Heuristic: a fixed schedule from mid (t = 0, data) to deep (t = 1, noise), uniform within the groups (AHPA Table D.15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsnr.options import option
from gsnr.train.alignments import AlignmentConfig
from gsnr.train.alignments._routed import RoutedAlignment, RoutedConfig
from gsnr.train.config import ModelConfig

SCHEDULES = ("linear", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class Config(RoutedConfig):
    schedule: str = option("linear", "beta as a function of t (linear: Table D.15; sigmoid: mentioned in App. D.3, not run)", SCHEDULES)

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        return {name: cls.like(own, "both")}


class Alignment(RoutedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, model, groups, router=config.schedule)
