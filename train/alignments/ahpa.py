"""AHPA: hidden states pulled towards a timestep-routed mixture of mid and deep VAE features (AHPA Eq. 2-5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from train.alignments._routed import RoutedAlignment, default_tap

__all__ = ["Alignment", "Config", "default_tap"]


@dataclass(frozen=True, kw_only=True)
class Config:
    tap: int | None = None  # block; None: a quarter of the depth, Table A.9 (3 of B, 6 of L, 7 of XL)
    weight: float = 1.0  # lambda, Table D.13
    split: str | None = None  # mid/deep layers, Table D.14; None: as the cache groups them, 4/4 on SD-VAE
    router: str = "mlp"  # Table D.17
    projector: str = "conv3x3"  # Table D.13 (l)


class Alignment(RoutedAlignment):
    def __init__(self, config: Config, *, hidden_size: int, grid: int, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(
            tap=config.tap,
            weight=config.weight,
            split=config.split,
            sources=("mid", "deep"),
            router=config.router,
            projector=config.projector,
            hidden_size=hidden_size,
            grid=grid,
            groups=groups,
        )
