"""Heuristic: a fixed schedule from mid (t = 0, data) to deep (t = 1, noise), uniform within the groups (AHPA Table D.15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from train.alignments._routed import RoutedAlignment, RoutedConfig
from train.config import ModelConfig

SCHEDULES = ("linear", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class Config(RoutedConfig):
    schedule: str = "linear"  # Table D.15; sigmoid is the one that App. D.3 mentions and does not run


class Alignment(RoutedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        if config.schedule not in SCHEDULES:
            raise ValueError(f"alignment.schedule {config.schedule!r} does not exist; choose from {', '.join(SCHEDULES)}")
        super().__init__(config, model, groups, router=config.schedule)
