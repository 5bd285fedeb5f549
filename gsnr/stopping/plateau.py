"""Plateau: the alignment loss no longer falls (RARE, arXiv 2609.34732).

Two exponential averages of the alignment loss; released at the first check after step `after` at which (slow - fast) / slow < `fall`, and in any
case in time for the ramp to end at step `latest`. RARE averages (1 - cos) / 2; a constant factor changes nothing. Averages are taken over the means
of the steps between two checks, so a decay of d counts as d^steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.options import option
from gsnr.stopping import LOSSES, Check, RuleConfig, StopRule

EXAMPLE = {"after": 200, "every": 100}


@dataclass(frozen=True, kw_only=True)
class Config(RuleConfig):
    after: int = option(50_000, "no release before this step (RARE: an eighth of 400K)", low=0, high=10**9)
    fall: float = option(0.02, "released where the fast average lies less than this share below the slow one (RARE)", low=0, below=1)
    fast: float = option(0.999, "decay of the fast average, a step (RARE)", low=0, below=1)
    slow: float = option(0.99995, "decay of the slow average, a step (RARE)", low=0, below=1)
    latest: int = option(250_000, "step at which the ramp has ended at the latest; 0: none (RARE)", low=0, high=10**9)
    every: int = option(100, "steps between looks at the averages (ours; RARE looks at each)", low=1, high=10**9)


class Rule(StopRule):
    reads = LOSSES

    def __init__(self, config: Config, checks: int) -> None:
        super().__init__(config, checks)
        self.options, self.every = config, config.every

    def fires(self, check: Check) -> bool:
        numbers, c = self.memory.numbers, self.options
        for name, decay in (("fast", c.fast), ("slow", c.slow)):
            kept = decay**check.steps if name in numbers else 0.0
            numbers[name] = kept * numbers.get(name, 0.0) + (1 - kept) * check.loss
        late = c.latest > 0 and check.step >= c.latest - c.ramp
        return late or (check.step > c.after and numbers["slow"] - numbers["fast"] < c.fall * numbers["slow"])
