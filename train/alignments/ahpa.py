"""AHPA: hidden states pulled towards a timestep-routed mixture of mid and deep VAE features (AHPA Eq. 2-5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gsnr.options import option
from gsnr.train.alignments._learned import LearnedAlignment, LearnedConfig
from gsnr.train.config import ModelConfig
from gsnr.train.routers._encodings import ENCODINGS

LABEL = "AHPA"


@dataclass(frozen=True, kw_only=True)
class Config(LearnedConfig):
    router: str = option("mlp", "what makes the mixture weights (Table D.17)", "routers")
    router_depth: int = option(4, "linear layers of the router's MLP (Tables A.9, D.17)", low=1, high=64)
    t_encoding: str = option("linear", "how the router reads t (Table D.17)", tuple(ENCODINGS))


class Alignment(LearnedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, model, groups, router=config.router, depth=config.router_depth, encoding=config.t_encoding)
