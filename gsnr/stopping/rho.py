"""Rho: denoising holds the alignment in balance, rho = I / (lambda U) < -r, for good (`gsnr.balance`; ours).

At each check every bin of t is tested against rho >= -r, one-sided; Holm's step-down (1979) over the bins, at the level alpha / checks. It releases
where at least the share `bins` of the bins is below in `consecutive` checks. The levels of all checks add up to alpha, so that the chance of ever
releasing while every rho is at least -r is at most alpha, however dependent checks and bins are. Beyond the number of checks that was planned no
level is left, and it is silent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gsnr.options import option
from gsnr.stopping import BALANCES, Check, RuleConfig, StopRule

EXAMPLE = {"ramp": 10}


@dataclass(frozen=True, kw_only=True)
class Config(RuleConfig):
    limit: float = option(0.5, "r: released where rho lies below -r", low=0, high=1e3)
    alpha: float = option(0.05, "chance of ever releasing while rho is at least -r", above=0, below=1)
    consecutive: int = option(2, "checks in a row that must say so", low=1, high=10**3)
    bins: float = option(0.5, "share of the bins of t that must lie below, at least one of them", low=0, high=1)
    checks: int = option(0, "checks over which alpha is spent; 0: as many as the run makes", low=0, high=10**9)


class Rule(StopRule):
    reads = BALANCES

    def __init__(self, config: Config, checks: int) -> None:
        super().__init__(config, checks)
        self.options, self.planned = config, config.checks or checks

    def fires(self, check: Check) -> bool:
        done = self.memory.numbers["checks"] = self.memory.numbers.get("checks", 0) + 1
        level = self.options.alpha / self.planned if done <= self.planned else 0.0
        below = holm([b.p_below(-self.options.limit) for b in check.bins], level)
        needed = max(1, math.ceil(self.options.bins * len(check.bins)))
        return self.in_a_row(below >= needed) >= self.options.consecutive


def holm(p_values: list[float], level: float) -> int:
    """How many hypotheses Holm's step-down rejects, with a chance of at most `level` that one of them is true."""
    for i, p in enumerate(sorted(p_values)):
        if p > level / (len(p_values) - i) or not level:
            return i
    return len(p_values)
