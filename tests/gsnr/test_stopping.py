"""Stop rules: the contract, closed forms, the sequential test's errors in simulation, and the same answer offline from logs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gsnr import logs, plugins
from gsnr.balance import Balance
from gsnr.figures import verdict
from gsnr.stopping import Check, contract, make_rule
from gsnr.stopping.rho import holm
from tests.conftest import call


@pytest.mark.parametrize("name", plugins.names("rules"))
def test_contract(name: str) -> None:
    assert contract.check(name)


def balances(rho: float, rng: np.random.Generator, bins: int, sd: float = 0.3, n: int = 256) -> tuple[Balance, ...]:
    """Of bins with this true rho, noise of both products known."""
    made = []
    for _ in range(bins):
        inner, pull = rng.normal(rho, sd), rng.normal(1, 0.1)
        made.append(Balance(inner=inner, pull=pull, inner_var=sd**2, pull_var=0.01, covariance=0.0, cosine=inner, n=n))
    return tuple(made)


def first_release(truth: list[float], rng: np.random.Generator, **options: object) -> int | None:
    rule = make_rule({"name": "rho", **options}, len(truth))
    for k, rho in enumerate(truth, start=1):
        rule.see(Check(step=k, bins=balances(rho, rng, 4)))
    return rule.memory.released


def test_false_releases_of_the_sequential_test() -> None:
    """20 checks of 4 bins. At rho = 0 none of 200 runs. At the edge of its hypothesis, rho = -r, with the weakest demands, at most 5 %: of 200 runs
    no more than 18, whose chance at a rate of 5 % is 1 %."""
    rng = np.random.default_rng(0)
    assert not any(first_release([0.0] * 20, rng) for _ in range(200))
    weakest = {"consecutive": 1, "bins": 0.0}
    assert sum(first_release([-0.5] * 20, rng, **weakest) is not None for _ in range(200)) <= 18


def test_detection_delay() -> None:
    """rho falls from 0 to -1.5 within 10 checks and stays: it passes -0.5 in the 4th, and is found, on average, before the 13th of 20."""
    rng = np.random.default_rng(1)
    released = [first_release([-1.5 * min(1.0, k / 10) for k in range(20)], rng) for _ in range(200)]
    delays = np.array([20 if r is None else r - 4 for r in released])
    assert all(r is None or r > 4 for r in released) and 3 < delays.mean() < 9, delays.mean()


def test_a_naive_rule_at_5_percent_a_check_does_release_falsely() -> None:
    """What the spending is for: without it more than a third of the runs at the edge are released."""
    rng = np.random.default_rng(2)
    naive = {"consecutive": 1, "bins": 0.0, "alpha": 0.99, "checks": 5}  # 20 % a check, 5 % a bin
    assert sum(first_release([-0.5] * 5, rng, **naive) is not None for _ in range(200)) > 66


def test_holm_and_the_planned_number_of_checks() -> None:
    assert holm([0.001, 0.012, 0.02, 0.5], 0.05) == 3 and holm([0.013, 0.02], 0.02) == 0 and holm([0.0], 0.0) == 0
    rule, rng = make_rule({"name": "rho", "checks": 3, "consecutive": 2}, 99), np.random.default_rng(3)
    steps = [rule.see(Check(step=k, bins=balances(0.0 if k < 3 else -30, rng, 2))) for k in range(1, 9)]
    assert not any(steps), "beyond what was planned no level is left"


def test_plateau_in_closed_form() -> None:
    """The loss halves every 100 steps to a floor; averages by the definition, step by step of the windows."""
    options = {"name": "plateau", "after": 300, "every": 50, "fast": 0.98, "slow": 0.995, "latest": 0}
    rule, fast, slow, expected, then = make_rule(options, 0), 0.0, 0.0, None, 0.0
    for k in range(1, 61):
        loss = max(0.4, 0.5 ** (k / 2))
        fast = loss if k == 1 else 0.98**50 * fast + (1 - 0.98**50) * loss
        slow = loss if k == 1 else 0.995**50 * slow + (1 - 0.995**50) * loss
        if expected is None and 50 * k > 300 and (slow - fast) / slow < 0.02:
            expected, then = 50 * k, slow
        rule.see(Check(step=50 * k, loss=loss, steps=50))
    assert rule.memory.released == expected and expected is not None and rule.memory.numbers["slow"] == pytest.approx(then)
    late = make_rule(options | {"latest": 200, "ramp": 40, "after": 10**6}, 0)
    assert [late.see(Check(step=s, loss=1.0, steps=50)) for s in (50, 100, 150, 200)] == [False, False, False, True]


def test_haste_and_fork() -> None:
    rule, rng = make_rule({"name": "haste_trigger"}, 9), np.random.default_rng(0)
    unknown = Balance(inner=-1, pull=1, inner_var=1, pull_var=1, covariance=0, cosine=float("nan"), n=9)
    assert not rule.see(Check(step=1, bins=(unknown,))) and not rule.see(Check(step=2, bins=balances(0.2, rng, 2, sd=0.01)))
    assert rule.see(Check(step=3, bins=(*balances(-0.06, rng, 4, sd=1e-3), unknown)))
    fork = make_rule({"name": "fork"}, 9)
    seen = [fork.see(Check(step=k, difference=(d, d - 1, d + 1))) for k, d in enumerate((3, -2, 0, -2, -2, 5))]
    assert seen == [False, False, False, False, True, True]


def write(path: Path, lines: list[dict]) -> None:
    for line in lines:
        logs.append(path, line)


def test_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From logs, the answer of the rule itself; and what is missing is named."""
    rng, rule = np.random.default_rng(4), make_rule({"name": "rho"}, 8)
    for k in range(9):
        own = balances(0.5 - k / 2, rng, 2, sd=0.05)
        write(tmp_path / "balance.jsonl", [{"step": 100 * k} | b.line() for b in own])
        rule.see(Check(step=100 * k, bins=own)) if k else None
    assert call(verdict.main, "--run", tmp_path, "--stop-rule", "rho") == 0
    assert f"would have released the alignment at step {rule.memory.released} (8 checks up to step 800)" in capsys.readouterr().out
    assert call(verdict.main, "--run", tmp_path, "--stop-rule", "rho", "--stop-rule.limit", 50) == 0
    assert "would not have released" in capsys.readouterr().out
    write(tmp_path / "metrics.jsonl", [{"step": 10 * k, "align": 1.0 if k < 9 else 0.0, "skipped": 0} for k in range(1, 12)])
    assert call(verdict.main, "--run", tmp_path, "--stop-rule", "plateau", "--stop-rule.after", 40) == 0
    assert "at step 50 (8 checks up to step 80)" in capsys.readouterr().out
    (empty := tmp_path / "none").mkdir()
    for words, message in (
        (("--stop-rule", "rho", "--run", empty), r"none: has no balance.jsonl .* --gsnr-every"),
        (("--stop-rule", "none", "--run", tmp_path), "never releases"),
        (("--stop-rule", "pleateau", "--run", tmp_path), "stop rule|rule 'pleateau' does not exist"),
        (("--stop-rule", "rho", "--run", tmp_path, "--stop-rule.limt", 3), r"stop_rule.limt"),
        (("--stop-rule", "fork", "--run", tmp_path), r"forks.json: cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            call(verdict.main, *words)


def test_a_series_of_forks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forks of three checkpoints: the alignment gains at first, then twice it costs velocity loss (its difference from vanilla lies above 0)."""
    for step, (d, low, high) in ((100, (-1, -2, -0.5)), (300, (2, 1, 3)), (200, (1, 0.5, 2))):
        (tmp_path / str(step)).mkdir()
        one = {"row": "repa", "metric": "velocity_loss", "difference": d, "over_seeds": [low, high], "over_images": [low, high]}
        (tmp_path / str(step) / "forks.json").write_text(json.dumps({"about": {"step": step}, "differences": [one, one | {"row": "ahpa"}]}))
    words = ("--stop-rule", "fork", "--run", *(tmp_path / step for step in ("100", "200", "300")))
    assert call(verdict.main, *words, "--stop-rule.row", "repa") == 0
    assert "at step 300 (3 checks up to step 300)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has no row '': --stop-rule.row names one of repa, ahpa"):
        call(verdict.main, *words)
