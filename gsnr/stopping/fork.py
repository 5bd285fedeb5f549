"""Fork: going on without the alignment is better, by paired forks of the run (ours).

Every so often the run is continued for some steps with the alignment and without it, on the same batches; what the alignment gains in a held-out
metric, with its 95 % interval, is one difference of the series. Released where the upper end lies below 0 in `consecutive` checks. The trainer
makes no forks: this rule is asked of a series that is there, by `gsnr verdict --stop-rule fork --run FORKS1 FORKS2 ...` of folders of `gsnr fork`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.options import option
from gsnr.stopping import DIFFERENCES, Check, RuleConfig, StopRule

EXAMPLE = {"ramp": 10}


@dataclass(frozen=True, kw_only=True)
class Config(RuleConfig):
    consecutive: int = option(2, "checks in a row that must say so", low=1, high=10**3)
    row: str = option("", "row of the forks (default: the only one)")
    metric: str = option("velocity_loss", "metric of the forks, lower is better")


class Rule(StopRule):
    reads = DIFFERENCES

    def __init__(self, config: Config, checks: int) -> None:
        super().__init__(config, checks)
        self.options = config

    def fires(self, check: Check) -> bool:
        assert check.difference is not None
        return self.in_a_row(check.difference[2] < 0) >= self.options.consecutive
