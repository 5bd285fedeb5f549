"""The contract of a stop rule."""

from __future__ import annotations

import copy
from dataclasses import asdict

from gsnr import plugins
from gsnr.balance import Balance
from gsnr.plugins import hold, hold_options
from gsnr.stopping import BALANCES, DIFFERENCES, LOSSES, NOTHING, Check, RuleConfig, StopRule, make_rule, rule_config


def _series(end: float) -> list[Check]:
    """40 checks: the loss flat, rho and the difference going from 1 to `end`."""
    values = [1 + (end - 1) * min(1.0, i / 20) for i in range(40)]
    bins = [Balance(inner=x, pull=1.0, inner_var=1e-6, pull_var=1e-6, covariance=0.0, cosine=x, n=256) for x in values]
    return [
        Check(step=100 * (i + 1), loss=1.0 if end < 0 else 0.9**i, steps=100, bins=(b, b), difference=(x, x - 0.01, x + 0.01))
        for i, (x, b) in enumerate(zip(values, bins, strict=True))
    ]


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that stop rule `name` breaks; what was checked otherwise."""
    module = plugins.find("rules", name)
    config = module.Config
    hold_options(config, RuleConfig, name)
    hold(issubclass(module.Rule, StopRule), name, "Rule does not extend StopRule")
    options = {"name": name} | getattr(module, "EXAMPLE", {})
    resolved = asdict(rule_config(options))
    hold(asdict(rule_config({"name": name} | resolved)) == resolved, name, "its options, resolved, do not resolve to themselves")
    rule = make_rule(options, 40)
    hold(rule.reads in (LOSSES, BALANCES, DIFFERENCES, NOTHING), name, f"reads {rule.reads!r}")
    hold(rule.reads != LOSSES or rule.every > 0, name, "reads losses, and does not say every how many steps")
    seen = [rule.see(c) for c in _series(-2.0)]
    hold(seen == sorted(seen), name, "released, and then not any more")
    again, half = make_rule(options, 40), make_rule(options, 40)
    for c in _series(-2.0)[:20]:
        half.see(c)
    again.memory = copy.deepcopy(half.memory)
    hold([again.see(c) for c in _series(-2.0)[20:]] == seen[20:], name, "remembers something outside its memory")
    helping = make_rule(options, 40)
    hold(not any(helping.see(c) for c in _series(1.0)), name, "releases an alignment that helps all the time")
    return [f"options and memory; reads {rule.reads}", f"released at {rule.memory.released} of a series that turns, not of one that helps"]
