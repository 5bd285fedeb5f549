"""None: the alignment is never released."""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.stopping import NOTHING, Check, RuleConfig, StopRule


@dataclass(frozen=True, kw_only=True)
class Config(RuleConfig):
    pass


class Rule(StopRule):
    reads = NOTHING

    def fires(self, check: Check) -> bool:
        return False
