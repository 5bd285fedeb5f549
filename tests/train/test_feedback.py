"""Stop rules and measured schedules in the trainer: closed forms, what is no longer computed, resumption bit for bit, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gsnr
from gsnr.probes.common.command import main as probe
from gsnr.train.command import main
from gsnr.train.config import resolve
from gsnr.train.data import batches
from gsnr.train.feedback import Releasing
from gsnr.train.runs import checkpoint
from gsnr.train.schedules import make_schedule
from gsnr.train.schedules._measured import MeasuredSchedule, Reading
from tests.conftest import call
from tests.gsnr.problems import LinearRegression
from tests.train.run_files import assert_same_run, lines, tensors

SMALL = ("--preset", "smoke", "--trackers", "none", "--log-every", 1, "--save-every", 100)
T = torch.linspace(0, 1, 9)


def measured(name: str, **options: object) -> MeasuredSchedule:
    schedule = make_schedule({"name": name, "batch": 64} | options)
    assert isinstance(schedule, MeasuredSchedule)
    return schedule


def readings(*values: tuple[float, float, float]) -> list[Reading]:
    """(gsnr, inner, its standard error) of equal bins."""
    n = len(values)
    return [Reading(low=k / n, high=(k + 1) / n, gsnr=g, inner=i, inner_se=se) for k, (g, i, se) in enumerate(values)]


def test_wiener_is_the_factor_of_least_error() -> None:
    """Quadratic model with known gradient and noise: over factors c, mean |c G - g|^2 of 40,000 batches is least at the schedule's, to 0.01."""
    problem, size = LinearRegression(d=8, size=0.7, sigma=1.0), 16
    schedule = measured("wiener", normalise=False, batch=size)
    result = gsnr.measure(problem.model, problem.loss, problem.batches(100_000, 0))["all"]
    schedule.observe([Reading(low=0, high=1, gsnr=result.gsnr, inner=0, inner_se=1)])
    rng = np.random.default_rng(1)
    x, e = rng.standard_normal((40_000, size, 8)), rng.standard_normal((40_000, size))
    batch_gradients = ((x @ problem.delta - e)[..., None] * x).mean(1)
    closed = size * problem.signal / problem.noise / (1 + size * problem.signal / problem.noise)
    least = (batch_gradients @ problem.delta).mean() / np.square(batch_gradients).sum(1).mean()
    assert schedule.weights[0] == pytest.approx(closed, abs=0.01) and least == pytest.approx(closed, abs=0.01)


def test_budget_and_average_in_closed_form() -> None:
    """Equal mean weight over t, an EMA of .9 over measurements, below 0 as 0."""
    schedule = measured("wiener")
    assert torch.equal(schedule.weight(1, T), torch.ones(9))
    schedule.observe(readings((0.1, 0, 1), (-0.5, 0, 1)))
    schedule.observe(readings((0.2, 0, 1), (5.5, 0, 1)))
    g = np.array([0.9 * 0.1 + 0.1 * 0.2, 0.9 * -0.5 + 0.1 * 5.5])
    c = 32 * g / (1 + 32 * g)
    np.testing.assert_allclose(schedule.weight(9, torch.tensor([0.2, 0.7])), c / c.mean(), rtol=1e-5)
    schedule.observe(readings((-99.0, 0, 1), (-99.0, 0, 1)))
    np.testing.assert_allclose(schedule.weight(9, torch.tensor([0.2, 0.7])), c / c.mean(), rtol=1e-5, err_msg="no budget to divide")
    again = measured("wiener")
    again.restore(json.loads(json.dumps(schedule.state())))
    assert torch.equal(again.weight(5, T), schedule.weight(5, T)) and again.state() == schedule.state()


def test_constructive_and_its_mirror() -> None:
    rows = readings((0, 0.3, 0.1), (0, -0.3, 0.1), (0, 0.0, 0.0))
    found = []
    for name in ("constructive", "anticonstructive"):
        schedule = measured(name)
        schedule.observe(rows)
        found.append(schedule.weights)
    assert found[0] == pytest.approx([0.9, 0, 0]) and found[1] == pytest.approx([0.1, 1, 1])


def test_from_a_table_of_a_probe(probed_run: Path) -> None:
    """The weights by the definition from the table's rows, which the configuration keeps; and what is wrong is named."""
    path = probed_run / "probes" / "alignment.parquet"
    cells = gsnr.table.read(path)
    target = cells["target"].iloc[0]
    options = {"name": "wiener", "table": str(path), "target": target}
    kept = resolve({"schedule": options, "batch": 32}).schedule
    assert kept["table"] == "" and kept["batch"] == 32
    here = cells[(cells["target"] == target) & (cells["group"] == "all") & (cells["control"] == "none")]
    kind = next(kind for kind in ("fit", "ckpt", "fresh", "none") if kind in set(here["projector"]))
    here = here[here["projector"] == kind].sort_values("bin")
    width = (here["t_high"] - here["t_low"]).to_numpy()
    x = 32 * width * here["gsnr"].clip(lower=0).to_numpy()
    c = x / (1 + x)
    weights = make_schedule(kept).weight(1, torch.tensor(((here["t_low"] + here["t_high"]) / 2).to_numpy()))
    np.testing.assert_allclose(weights, c / (c * width).sum(), rtol=1e-5)
    z = (here["cos_denoise"] / ((here["cos_high"] - here["cos_low"]) / 2)).to_numpy()
    values = resolve({"schedule": options | {"name": "constructive"}}).schedule["values"]
    assert all((value == 0) == (not one > 0) for value, one in zip(values, z, strict=True))
    for change, message in (
        ({"target": "nobody"}, r"schedule.target 'nobody': .*alignment.parquet has "),
        ({"table": "none.parquet"}, r"schedule.table none.parquet: no such table"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve({"schedule": options | change})
    with pytest.raises(ValueError, match="velocity_schedule: it is the alignment's gradient"):
        resolve({"velocity_schedule": {"name": "wiener"}})


def test_a_release_is_half_a_cosine() -> None:
    schedule = Releasing(make_schedule({"name": "constant"}), 10)
    schedule.release(100)
    found = [schedule.weight(step, T)[0].item() for step in (1, 100, 105, 109, 110, 10**6)]
    assert found == pytest.approx([1, 1, 0.5, (1 + np.cos(0.9 * np.pi)) / 2, 0, 0], abs=1e-6)
    assert schedule.last == 109 and not schedule.over(109) and schedule.over(110)
    early = Releasing(make_schedule({"name": "stop", "at": 50}), 10)
    early.release(45)
    assert early.last == 50 and early.weight(50, T)[0] > 0 and not early.weight(51, T).any()


def test_released_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule on measurements and a measured schedule: once the ramp is over no feature is read, the log has no alignment loss, and a run in two
    parts, cut within the ramp, is the same bit for bit."""
    read: list[tuple[str, ...]] = []
    assemble = batches.assemble

    def noted(*of: object, **more: object) -> object:
        read.append(of[4])  # type: ignore[arg-type]
        return assemble(*of, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "assemble", noted)
    rule = ("--stop-rule", "haste_trigger", "--stop-rule.below", 1, "--stop-rule.ramp", 3)
    measured = ("--gsnr-every", 4, "--gsnr-images", 32, "--gsnr-bins", 2, "--schedule", "wiener")
    words = (*SMALL, "--alignment", "repa", "--alignment.projector-width", 16, *measured, *rule, "--steps", 8)
    assert call(main, *words, "--out", tmp_path / "whole") == 0
    state = json.loads((tmp_path / "whole" / "checkpoints" / "0000008" / "state.json").read_text())["feedback"]
    assert state["rule"]["released"] == 4 and state["schedule"]["edges"] == [0.0, 0.5, 1.0]
    metrics = lines(tmp_path / "whole" / "metrics.jsonl")
    assert [line["align"] > 0 for line in metrics] == [True] * 6 + [False] * 2
    assert set(read[-2:]) == {()} and read[:3] == [("teacher",)] * 3
    assert call(main, *words[:-1], 5, "--out", tmp_path / "parts") == 0
    assert call(main, *words, "--out", tmp_path / "parts", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 8)
    assert {len(lines(tmp_path / run / "balance.jsonl")) for run in ("whole", "parts")} == {6}


def test_a_plateau_in_two_parts(tmp_path: Path) -> None:
    """Cut between two looks at the loss, which are of three steps."""
    rule = ("--stop-rule", "plateau", "--stop-rule.every", 3, "--stop-rule.after", 3, "--stop-rule.fall", 0.5, "--stop-rule.ramp", 2)
    words = (*SMALL, *rule, "--steps", 9)
    assert call(main, *words, "--out", tmp_path / "whole") == 0
    assert call(main, *words[:-1], 4, "--out", tmp_path / "parts") == 0
    assert call(main, *words, "--out", tmp_path / "parts", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 9)
    assert [line["align"] > 0 for line in lines(tmp_path / "whole" / "metrics.jsonl")] == [True] * 7 + [False] * 2
    one, two = (tensors(tmp_path / run / "checkpoints" / "0000009") for run in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(x, two[name]) for name, x in one.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stop-rule", "rho"), r"--stop-rule rho: reads what is measured .* --gsnr-every K"),
        (("--stop-rule", "fork"), r"--stop-rule fork: reads forks"),
        (("--schedule", "wiener"), r"--schedule wiener: is measured while it trains; .*--gsnr-every K"),
        (("--stop-rule", "plateau", "--alignment", "none"), r"--stop-rule plateau: this run has no alignment"),
        (("--stop-rule", "plato"), r"stop_rule 'plato' does not exist|rule 'plato' does not exist"),
        (("--stop-rule", "plateau", "--stop-rule.fall", "2"), r"stop_rule.fall 2.0: must be at least 0 and below 1"),
    ],
)
def test_refusals(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(main, *SMALL, *words, "--steps", 2, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mixture_that_is_probed_and_trained_with(smoke_run: Path, tmp_path: Path) -> None:
    """The table's weights are what the router gives in each bin, the run keeps them, and a table of other groups is refused."""
    words = ("--ckpt", smoke_run, "--probe", "mixture", "--bins", 2, "--n-images", 16, "--out", tmp_path)
    assert call(probe, *words) == 0
    path = tmp_path / "mixture.parquet"
    rows = gsnr.table.read(path, "mixture")
    weight = rows[rows["metric"] == "weight"].pivot(index="bin", columns="target", values="value")[["mid", "deep"]].to_numpy()
    np.testing.assert_allclose(weight.sum(1), 1)
    best = rows[rows["metric"] == "descent"].pivot(index="bin", columns="target", values="value")
    assert (best["mixture"] >= best[["mid", "deep"]].max(axis=1).clip(lower=0) * (1 - 1e-9)).all()
    router = ("--alignment", "ahpa", "--alignment.per-group", "true", "--alignment.router", "table")
    assert call(main, *SMALL, *router, "--alignment.router-table", path, "--steps", 2, "--out", tmp_path / "run") == 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["alignment"]
    assert kept["table_edges"] == [0.0, 0.5, 1.0] and np.allclose(kept["table_weights"], weight.ravel()) and kept["router_table"] == ""
    beta = checkpoint.load(tmp_path / "run", "raw").alignment.router(torch.tensor([0.1, 0.5, 1.0]), None)["beta"]
    np.testing.assert_allclose(beta, weight[[0, 1, 1]], rtol=1e-6)
    for change, message in (
        (("--alignment.source", "G1-G4"), r"router_table .*mixture.parquet: has weights of .*, not of G1, G2, mid, deep"),
        (("--alignment.router", "mlp"), r"alignment.router_table: goes with alignment.router table"),
    ):
        with pytest.raises(ValueError, match=message):
            call(main, *SMALL, *router, "--alignment.router-table", path, *change, "--steps", 2, "--out", tmp_path / "no")
