"""Stop rules: when has an alignment done its work? One file each, found by name; a file has

    class Config(RuleConfig)       frozen dataclass: its options and their defaults, each with its source
    class Rule(StopRule)           built as Rule(config, checks); checks: how many there will be, where a rule spends its errors over them
    EXAMPLE = {"after": 2}         options for the contract (optional)

The trainer asks a rule while it trains (`--stop-rule`), and `gsnr verdict --stop-rule` asks it of the logs of a run that is over; both show it the
same numbers, so it says the same. After the release the weight of the alignment falls to 0 over `ramp` steps, and then neither teacher nor tap
costs anything. Importable without torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gsnr import plugins
from gsnr.balance import Balance
from gsnr.options import option, plugged

LOSSES, BALANCES, DIFFERENCES, NOTHING = "losses", "balances", "differences", "nothing"


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """What all rules have."""

    ramp: int = option(50_000, "steps in which the weight falls to 0 once released, by half a cosine (RARE: an eighth of 400K)", low=0, high=10**9)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a rule is shown after a step. loss: mean alignment loss over the last `steps` steps. bins: the balance in each bin of t. difference:
    what the alignment gains over going on without it, paired, with the ends of its 95 % interval; above 0 is better."""

    step: int
    loss: float = float("nan")
    steps: int = 0
    bins: tuple[Balance, ...] = ()
    difference: tuple[float, float, float] | None = None


@dataclass
class Memory:
    """All that a rule remembers: numbers by name, and when it released; what a checkpoint keeps."""

    numbers: dict[str, float] = field(default_factory=dict)
    released: int | None = None


class StopRule(ABC):
    """reads: LOSSES, BALANCES, DIFFERENCES or NOTHING, what its checks hold. every: steps between checks of the loss; 0 where it does not say."""

    reads: str
    every = 0

    def __init__(self, config: RuleConfig, checks: int) -> None:
        self.config, self.checks, self.memory = config, checks, Memory()

    @abstractmethod
    def fires(self, check: Check) -> bool:
        """Whether this check, after those before, says: release. What it remembers goes into `memory.numbers`."""

    def see(self, check: Check) -> bool:
        """True from the check on that released."""
        if self.memory.released is None and self.fires(check):
            self.memory.released = check.step
        return self.memory.released is not None

    def in_a_row(self, holds: bool) -> int:
        """How many checks in a row this has been so, this one included."""
        self.memory.numbers["in_a_row"] = self.memory.numbers.get("in_a_row", 0) + 1 if holds else 0
        return int(self.memory.numbers["in_a_row"])


def rule_config(values: Mapping[str, Any], section: str = "stop_rule") -> Any:
    """A rule's options as the Config of its file. Raises ValueError for an unknown name or option, and for a value out of its range."""
    return plugged("rules", section, values, "none")


def make_rule(values: Mapping[str, Any], checks: int) -> StopRule:
    """The rule that a configuration names. Raises ValueError as `rule_config` does."""
    rule: StopRule = plugins.find("rules", values.get("name", "none")).Rule(rule_config(values), checks)
    return rule
