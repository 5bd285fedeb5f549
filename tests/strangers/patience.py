"""Patience: released at the third check in a row whose alignment loss is not below the best so far."""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.options import option
from gsnr.stopping import LOSSES, Check, RuleConfig, StopRule


@dataclass(frozen=True, kw_only=True)
class Config(RuleConfig):
    every: int = option(100, "steps between checks", low=1, high=10**9)


class Rule(StopRule):
    reads = LOSSES

    def __init__(self, config: Config, checks: int) -> None:
        super().__init__(config, checks)
        self.every = config.every

    def fires(self, check: Check) -> bool:
        best = self.memory.numbers.get("best", float("inf"))
        self.memory.numbers["best"] = min(best, check.loss)
        return self.in_a_row(check.loss >= best) == 3
