"""Uniform: AHPA without its router; every layer of the source weighs the same at every t (the baselines of Tables 1, 2, 7 and D.15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsnr.train.alignments import AlignmentConfig
from gsnr.train.alignments._routed import RoutedAlignment, RoutedConfig
from gsnr.train.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Config(RoutedConfig):
    def target_name(self, name: str) -> str:
        return f"{name}_{self.source}"

    @classmethod
    def targets(cls, name: str, model: ModelConfig, own: AlignmentConfig | None) -> dict[str, dict[str, Any]]:
        """Each group of layers, and the mixtures of several."""
        return {f"{name}_{source}": cls.like(own, source) for source in ("G1", "G2", "mid", "deep", "both", "G1-G4")}


class Alignment(RoutedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, model, groups, router="fixed")
