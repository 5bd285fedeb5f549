"""Uniform: AHPA without its router; every layer of the source weighs the same at every t (the baselines of Table 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from train.alignments._routed import RoutedAlignment, default_tap

__all__ = ["Alignment", "Config", "default_tap"]

SOURCES = {"mid": ("mid",), "deep": ("deep",), "both": ("mid", "deep")}


@dataclass(frozen=True, kw_only=True)
class Config:
    source: str = "both"  # mid, deep or both
    tap: int | None = None  # block; None: a quarter of the depth, Table A.9 (3 of B, 6 of L, 7 of XL)
    weight: float = 1.0  # as AHPA
    split: str | None = None  # mid/deep layers, Table D.14; None: as the cache groups them, 4/4 on SD-VAE
    projector: str = "conv3x3"  # as AHPA


class Alignment(RoutedAlignment):
    def __init__(self, config: Config, *, hidden_size: int, grid: int, groups: Mapping[str, tuple[int, ...]]) -> None:
        if config.source not in SOURCES:
            raise ValueError(f"alignment.source {config.source!r} does not exist; choose from {', '.join(SOURCES)}")
        super().__init__(
            tap=config.tap,
            weight=config.weight,
            split=config.split,
            sources=SOURCES[config.source],
            router="fixed",
            projector=config.projector,
            hidden_size=hidden_size,
            grid=grid,
            groups=groups,
        )
