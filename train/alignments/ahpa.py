"""AHPA: hidden states pulled towards a timestep-routed mixture of mid and deep VAE features (AHPA Eq. 2-5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from train.alignments._routed import RoutedAlignment, RoutedConfig
from train.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Config(RoutedConfig):
    router: str = "mlp"  # Table D.17: mlp, lookup, attention, content
    router_depth: int = 4  # linear layers of its MLP, Tables A.9 and D.17
    t_encoding: str = "linear"  # Table D.17: linear, sinusoidal, fourier


class Alignment(RoutedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, model, groups, router=config.router, router_depth=config.router_depth, t_encoding=config.t_encoding)
