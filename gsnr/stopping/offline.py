"""Where would a stop rule have released the alignment of a run that is over? From its logs, or from forks of it; nothing is trained or measured.

The rule sees what it would have seen in the trainer, with two differences: the loss comes at the lines of metrics.jsonl, and the run that is read
went on unreleased. A series of forks is several folders of `gsnr fork`, one a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gsnr import files, logs
from gsnr.balance import Balance
from gsnr.stopping import BALANCES, DIFFERENCES, LOSSES, Check, make_rule

METRICS, BALANCE, FORKS = "metrics.jsonl", "balance.jsonl", "forks.json"
ALL_STEPS = 2**63


@dataclass(frozen=True)
class Outcome:
    """What a rule says of a run. checks: those it was shown; last: the step of the last of them; released: None for never."""

    run: str
    rule: str
    checks: int
    last: int
    released: int | None

    def __str__(self) -> str:
        shown = f"{self.checks} checks up to step {self.last}"
        if self.released is None:
            return f"{self.run}: stop rule {self.rule!r} would not have released the alignment ({shown})"
        return f"{self.run}: stop rule {self.rule!r} would have released the alignment at step {self.released} ({shown})"


def of_losses(run: Path) -> Iterator[Check]:
    """A check a line of metrics.jsonl, as long as there is an alignment loss."""
    before = 0
    for line in logs.read(run / METRICS, ALL_STEPS):
        steps = line["step"] - before - int(line.get("skipped", 0))
        before = line["step"]
        if line.get("align") and steps > 0:
            yield Check(step=line["step"], loss=float(line["align"]), steps=steps)


def of_balances(run: Path) -> Iterator[Check]:
    """A check a step of balance.jsonl, but for that before training. Raises ValueError, naming the file, for a line that is no balance."""
    lines = [line for line in logs.read(run / BALANCE, ALL_STEPS) if line["step"]]
    for step, own in groupby(lines, key=lambda line: int(line["step"])):
        try:
            yield Check(step=step, bins=tuple(Balance.of_line(line) for line in own))
        except KeyError as error:
            raise ValueError(f"{run / BALANCE}: a line of step {step} lacks {error}") from error


def of_forks(folders: Sequence[Path], row: str, metric: str) -> Iterator[Check]:
    """A check a folder of `gsnr fork`, by the step of its checkpoint. What the alignment gains is the fall of the metric, with its interval over
    seeds, or over images where there is one seed. Raises ValueError, naming the file, for one that is damaged or has no such row or metric."""
    checks = []
    for path in (folder / FORKS for folder in folders):
        try:
            values = files.read_json(path)
            step, every = int(values["about"]["step"]), values["differences"]
            rows = list(dict.fromkeys(d["row"] for d in every))
            if row not in rows and (row or len(rows) != 1):
                raise ValueError(f"has no row {row!r}: --stop-rule.row names one of {', '.join(rows)}")
            own = [d for d in every if d["row"] == (row or rows[0]) and d["metric"] == metric]
            if not own:
                raise ValueError(f"has no metric {metric!r}; it has {', '.join(dict.fromkeys(d['metric'] for d in every))}")
            interval = own[0]["over_seeds"] if own[0]["over_seeds"][0] == own[0]["over_seeds"][0] else own[0]["over_images"]
            low, high = map(float, interval)
            checks.append(Check(step=step, difference=(-float(own[0]["difference"]), -high, -low)))
        except (OSError, KeyError, TypeError, IndexError, ValueError) as error:
            why = error if type(error) is ValueError else f"cannot be read as the forks of a checkpoint ({error!r})"
            raise ValueError(f"{path}: {why}") from error
    yield from sorted(checks, key=lambda check: check.step)


def asked(options: Mapping[str, Any], runs: Sequence[Path]) -> list[Outcome]:
    """What the rule that `options` name says of each run; of forks, of all folders together. Raises ValueError where there is nothing to read, naming
    what makes it."""
    name = options["name"]
    rule = make_rule(options, 1)
    if rule.reads == DIFFERENCES:
        series = [(", ".join(map(str, runs)), list(of_forks(runs, rule.config.row, rule.config.metric)))]  # type: ignore[attr-defined]
    elif rule.reads in (LOSSES, BALANCES):
        series = [(str(run), list(of_losses(run) if rule.reads == LOSSES else of_balances(run))) for run in runs]
    else:
        raise ValueError(f"--stop-rule {name}: never releases")
    found = []
    for where, checks in series:
        if not checks:
            made = "train with an alignment" if rule.reads == LOSSES else "train an aligned run with --gsnr-every K"
            raise ValueError(f"{where}: has no {METRICS if rule.reads == LOSSES else BALANCE} that rule {name!r} could read; {made}")
        rule = make_rule(options, len(checks))
        for check in checks:
            rule.see(check)
        found.append(Outcome(where, name, len(checks), checks[-1].step, rule.memory.released))
    return found
