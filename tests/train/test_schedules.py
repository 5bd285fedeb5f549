"""Schedules: against closed forms, the contract, what a step is with them, and that nothing is computed once they are over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from gsnr import plugins
from gsnr.train import optimizer
from gsnr.train.command import main
from gsnr.train.config import OptimConfig, resolve
from gsnr.train.contracts import schedules
from gsnr.train.contracts.problem import batch_of, made, sit
from gsnr.train.data import batches
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective
from gsnr.train.runs import checkpoint
from gsnr.train.schedules import WeightSchedule, make_schedule
from gsnr.train.step import optimisation_step
from tests import forked
from tests.conftest import REPO, call
from tests.train.run_files import lines, tensors

T = torch.linspace(0, 1, 11)
T64 = T.double().numpy()


@pytest.mark.parametrize("name", plugins.names("schedules"))
def test_contract(name: str) -> None:
    assert schedules.check(name)


def weights(step: int, **options: object) -> np.ndarray:
    return make_schedule(options).weight(step, T).double().numpy()


def test_of_steps_in_closed_form() -> None:
    assert [weights(step, name="stop", at=7)[0] for step in (1, 7, 8, 10**6)] == [1, 1, 0, 0]
    ramp = [weights(step, name="ramp", start=10, end=20)[3] for step in (1, 10, 15, 19, 20, 99)]
    assert ramp == pytest.approx([1, 1, 0.5, 0.1, 0, 0], abs=1e-7)
    up = [weights(step, name="ramp", start=10, end=20, before=0, after=2, shape="cosine")[3] for step in (10, 12, 15, 20)]
    assert up == pytest.approx([0, 2 * np.sin(np.pi / 10) ** 2, 1, 2], abs=1e-6)
    assert [weights(step, name="decay", start=10, tenth=5)[0] for step in (10, 15, 20)] == pytest.approx([1, 0.1, 0.01])
    assert (weights(10**6, name="constant") == 1).all()
    assert [make_schedule({"name": name}).last for name in ("constant", "stop", "ramp", "decay")] == [None, 100_000, 99_999, None]
    assert make_schedule({"name": "ramp", "after": 0.5}).last is None


def test_of_t_in_closed_form() -> None:
    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    snr = (1 - T64) ** 2 / ((1 - T64) ** 2 + T64**2 * (0.4 / 0.6) ** 2)
    table = np.where(T64 < 0.25, 2.0, 0.5)
    for name, options, expected, mean in (
        ("t_window", {"xi": 0.65}, (T64 < 0.65).astype(float), 0.65),
        ("t_sigmoid", {"xi": 0.6, "k": 8.0}, sigmoid(8 * (0.6 - T64)), (np.log1p(np.exp(8 * 0.6)) - np.log1p(np.exp(8 * -0.4))) / 8),
        ("t_snr", {"xi": 0.6}, snr, None),
        ("t_table", {"edges": (0, 0.25, 1), "weights": (2, 0.5)}, table, 0.875),
    ):
        np.testing.assert_allclose(weights(1, name=name, **options), expected, rtol=1e-5, atol=1e-7, err_msg=name)
        scaled = weights(5, name=name, normalise=True, **options)
        if mean is not None:
            np.testing.assert_allclose(scaled, expected / mean, rtol=1e-5, atol=1e-7, err_msg=name)
        else:  # the trapezium rule, on other points
            fine = np.linspace(0, 1, 100_001)
            its = (1 - fine) ** 2 / ((1 - fine) ** 2 + fine**2 * (0.4 / 0.6) ** 2)
            np.testing.assert_allclose(scaled, expected / np.trapezoid(its, fine), rtol=1e-5, atol=1e-7)


def test_a_table_comes_from_a_file_and_is_kept_in_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "bins.json"
    path.write_text(json.dumps({"bins": [{"low": 0, "high": 0.25, "weight": 2}, {"low": 0.25, "high": 1, "weight": 0.5}]}))
    config = resolve({"schedule": {"name": "t_table", "file": str(path)}})
    assert config.schedule == {"name": "t_table", "normalise": False, "file": "", "edges": (0.0, 0.25, 1.0), "weights": (2.0, 0.5)}
    assert resolve({"schedule": config.schedule}).schedule == config.schedule


BINS = '{"bins": [{"low": 0, "high": 0.3, "weight": 1}, {"low": %s, "high": %s, "weight": 1}]}'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "ramp", "start": 20, "end": 10}, r"^schedule.end 10: the ramp would end before it starts, at schedule.start 20$"),
        ({"name": "stop", "at": 0}, "schedule.at 0: must be at least 1"),
        ({"name": "stopp"}, "schedule 'stopp' does not exist; .*did you mean stop"),
        ({"name": "stop", "xi": 0.5}, "--schedule.xi: is an option of .*t_window.*, not of 'stop'"),
        ({"name": "t_window", "xi": 0}, r"schedule.xi 0.0: must be above 0"),
        ({"name": "t_table"}, "schedule.file is missing"),
        ({"name": "t_table", "edges": (0, 0.5), "weights": (1,)}, "schedule.edges: must rise from 0 to 1"),
        ({"name": "t_table", "edges": (0, 1), "weights": (1, 2)}, "2 edges need 1 finite weights"),
        ({"name": "t_table", "edges": (0, 1), "weights": (-1,)}, "finite weights of at least 0"),
        ({"name": "t_table", "edges": (0, 1), "weights": (0,), "normalise": True}, "the weight is 0 at every t"),
        ({"name": "t_table", "edges": (0, 1), "weights": (1,), "file": "x"}, "leave out schedule.edges"),
        ({"name": "t_table", "file": BINS % (0.4, 1)}, r"schedule.file .*a bin from 0.4 to 1.0 where one from 0.3 on is needed"),
        ({"name": "t_table", "file": BINS % (0.3, 0.9)}, "the bins end at 0.9, not at 1"),
        ({"name": "t_table", "file": '{"bins": 3}'}, "schedule.file .*: is no "),
        ({"name": "t_table", "file": "nowhere"}, "schedule.file .*: is no "),
    ],
)
def test_bad_options(options: dict, said: str, tmp_path: Path) -> None:
    if options.get("file", "").startswith("{"):
        (tmp_path / "bins.json").write_text(options["file"])
        options = options | {"file": str(tmp_path / "bins.json")}
    with pytest.raises(ValueError, match=said):
        resolve({"schedule": options})


def test_the_section_of_the_velocity_is_named() -> None:
    with pytest.raises(ValueError, match=r"velocity_schedule.end 10: .* velocity_schedule.start 20"):
        resolve({"velocity_schedule": {"name": "ramp", "start": 20, "end": 10}})


def gradients(schedules: dict[str, WeightSchedule], step: int, name: str = "repa") -> dict[str, torch.Tensor]:
    """parameter -> its gradient in one step, whose clipping does nothing."""
    torch.manual_seed(3)
    raw, accelerator = Objective(sit(), made(name)), Accelerator(cpu=True)
    objective, adamw = accelerator.prepare(raw, optimizer.make(raw, OptimConfig()))
    batch = batch_of(4) | {"label_drop": torch.zeros(4, dtype=torch.bool)}
    optimisation_step(accelerator, objective, raw, raw, adamw, batch, 1e9, 1, (), schedules, step)
    return {key: p.grad for key, p in raw.named_parameters() if p.grad is not None}


def test_a_step_is_that_of_the_loss_weighted_by_hand() -> None:
    """Both schedules at once, sample by sample, against autograd on the sum written out here."""
    both = {"align": make_schedule({"name": "t_window", "xi": 0.5}), "velocity": make_schedule({"name": "ramp", "before": 0, "after": 1, "end": 10})}
    found = gradients(both, 4)
    torch.manual_seed(3)
    raw = Objective(sit(), made("repa"))
    batch = batch_of(4) | {"label_drop": torch.zeros(4, dtype=torch.bool)}
    losses = raw(batch)
    loss = sum(0.4 * losses["velocity"][i] + 0.5 * float(batch["t"][i] < 0.5) * losses["align"][i] for i in range(4)) / 4
    loss.backward()
    assert 0 < int((batch["t"] < 0.5).sum()) < 4
    for key, p in raw.named_parameters():
        torch.testing.assert_close(found[key], p.grad, rtol=1e-4, atol=1e-6, msg=key)


def test_constant_changes_no_bit() -> None:
    constant = {"align": make_schedule({"name": "constant"}), "velocity": make_schedule({})}
    one, two = gradients(constant, 5), gradients({}, 5)
    assert all(torch.equal(one[key], two[key]) for key in one)


SMALL = ("--preset", "smoke", "--trackers", "none", "--log-every", 1, "--save-every", 100)
NARROW = ("--alignment.projector-width", 16)


@pytest.mark.parametrize("name", ["sra", "repa"])
def test_after_its_last_step_nothing_of_the_alignment_is_computed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: forward passes (sra has one of its moving average), projector, features read; and the log has no alignment loss any more."""
    calls: list[tuple[int, ...]] = []
    read: list[tuple[str, ...]] = []
    forward, assemble = SiT.forward_with_taps, batches.assemble

    def counted(self: SiT, *args: object, **more: object) -> object:
        calls.append(tuple(more.get("taps", ())))  # type: ignore[arg-type]
        return forward(self, *args, **more)  # type: ignore[arg-type]

    def noted(*of: object) -> object:
        read.append(of[4])  # type: ignore[arg-type]
        return assemble(*of)  # type: ignore[arg-type]

    monkeypatch.setattr(SiT, "forward_with_taps", counted)
    monkeypatch.setattr(batches, "assemble", noted)
    words = (*SMALL, "--alignment", name, "--schedule", "stop", "--schedule.at", 2, *(NARROW if name == "repa" else ()), "--steps", 5)
    assert call(main, *words, "--out", tmp_path / "run") == 0
    assert calls[-3:] == [()] * 3 and len(calls) == (7 if name == "sra" else 5)
    assert read == [("teacher",) if name == "repa" else ()] * 2 + [()] * 3
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["align"] > 0 for line in metrics] == [True, True, False, False, False]
    assert call(main, *words[:-1], 3, "--out", tmp_path / "parts") == 0
    assert call(main, *words, "--out", tmp_path / "parts", "--resume") == 0
    one, two = (tensors(checkpoint.locate(tmp_path / run)) for run in ("run", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


def test_parameters_of_the_alignment_stay_once_it_is_over() -> None:
    """Their moments would move them on if they had a gradient of 0."""
    torch.manual_seed(3)
    raw = Objective(sit(), made("repa"))
    adamw, accelerator = optimizer.make(raw, OptimConfig(lr=1e-2)), Accelerator(cpu=True)
    batch = batch_of(4) | {"label_drop": torch.zeros(4, dtype=torch.bool)}
    objective, prepared = accelerator.prepare(raw, adamw)
    kept: list[torch.Tensor] = []
    for step in (1, 2, 3):
        optimisation_step(accelerator, objective, raw, raw, prepared, batch, 1.0, 1, (), {"align": make_schedule({"name": "stop", "at": 1})}, step)
        kept.append(torch.cat([p.detach().flatten() for p in raw.alignment.parameters()]).clone())
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2])


AT_TWO = ("--stop-rule", "plateau", "--stop-rule.every", 1, "--stop-rule.latest", 2, "--stop-rule.ramp", 0)


def test_two_processes_stop_as_one_does(tmp_path: Path) -> None:
    """2 ranks over gloo: after the stop projector and router have no gradient on any rank, and nobody waits for it. Two processes by a rule that
    releases at that step, one by the schedule."""
    words = (*SMALL[:-4], "--alignment", "repa", *NARROW, "--steps", 5, "--save-every", 100)
    forked.ranks(2, ["train", *map(str, (*words, *AT_TWO)), "--out", str(tmp_path / "two")], REPO)
    assert call(main, *words, "--schedule", "stop", "--schedule.at", 2, "--out", tmp_path / "one") == 0
    one, two = (tensors(checkpoint.locate(tmp_path / run)) for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5, msg=name)
