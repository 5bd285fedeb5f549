"""Static: a mixture that is learned but does not depend on t. The control that AHPA's review asks for: is it the timestep, or the mixing?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gsnr.train.alignments._learned import LearnedAlignment, LearnedConfig
from gsnr.train.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Config(LearnedConfig):
    pass


class Alignment(LearnedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, model, groups, router="static")
