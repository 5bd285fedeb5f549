"""HASTE's trigger: the gradients' cosine, averaged over t, has fallen below -0.05 (Wang et al. 2025, arXiv 2505.16792).

The cosine is that of mean gradients, unbiased in each product; HASTE's is of minibatches, whose noise draws it to 0. Bins in which it is not
resolved are left out. It tests nothing: a cosine that hovers about the limit will cross it. And at a joint optimum it is below 0 for any target
(`gsnr.balance`); `rho` is the rule that allows for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from gsnr.options import option
from gsnr.stopping import BALANCES, Check, RuleConfig, StopRule

EXAMPLE = {"ramp": 10}


@dataclass(frozen=True, kw_only=True)
class Config(RuleConfig):
    below: float = option(-0.05, "released where the mean cosine lies below (HASTE)", low=-1, high=1)
    consecutive: int = option(1, "checks in a row that must say so", low=1, high=10**3)


class Rule(StopRule):
    reads = BALANCES

    def __init__(self, config: Config, checks: int) -> None:
        super().__init__(config, checks)
        self.options = config

    def fires(self, check: Check) -> bool:
        known = [b.cosine for b in check.bins if b.cosine == b.cosine]
        return self.in_a_row(bool(known) and sum(known) / len(known) < self.options.below) >= self.options.consecutive
