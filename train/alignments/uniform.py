"""Uniform: AHPA without its router; every layer of the source weighs the same at every t (the baselines of Tables 1, 2, 7 and D.15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gsnr.train.alignments._routed import RoutedAlignment, RoutedConfig
from gsnr.train.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Config(RoutedConfig):
    pass


class Alignment(RoutedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, model, groups, router="fixed")
