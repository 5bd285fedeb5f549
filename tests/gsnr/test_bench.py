"""`gsnr bench` on tiny subjects: what it compares agrees, what it prints can be read. No time is asserted."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gsnr
from gsnr.benchmarks import bench, peers
from gsnr.benchmarks.methods import METHODS, OURS, STEP, errors, peak_bytes, prepare, reference
from gsnr.benchmarks.subjects import SUBJECTS, Subject, build, convnet, sit
from gsnr.engines import ENGINES
from tests.conftest import call, run_module
from tests.forked import Forked

TINY = {"sit": partial(sit, 16, 2, 1, tokens=6, batch=4), "convnet": partial(convnet, 8, side=8, batch=4)}
PEERS_INSTALLED = [name for name in peers.PEERS if peers.installed(name)]


def tiny(name: str, batches: int = 2) -> Subject:
    return build(name, batches, torch.device("cpu"), TINY[name])


def test_every_subject_has_a_tiny_version_and_every_engine_a_method() -> None:
    assert {made.func.__name__ for made in SUBJECTS.values() if isinstance(made, partial)} == set(TINY)
    assert {options["engine"] for options in OURS.values()} == set(ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TINY)
def test_engines_agree_with_the_loop_on_every_subject(name: str, engine: str) -> None:
    """float32 against the loop in float64: 1e-4 in the norms, 1e-3 of the greatest r_i."""
    subject = tiny(name)
    double = [{key: x.double() for key, x in batch.items()} for batch in subject.batches]
    found = gsnr.measure(subject.model, subject.loss, subject.batches, engine=engine)["all"]
    truth = gsnr.measure(subject.model.double(), subject.loss, double, engine="loop")["all"]
    np.testing.assert_allclose(found.q_n, truth.q_n, rtol=1e-4)
    assert found.sum_sq == pytest.approx(truth.sum_sq, rel=1e-4)
    assert found.r_n is not None and truth.r_n is not None
    np.testing.assert_allclose(found.r_n, truth.r_n, rtol=0, atol=1e-3 * np.abs(truth.r_n).max())


@pytest.mark.parametrize("name", TINY)
def test_subjects_do_not_couple_samples_and_move_every_parameter(name: str) -> None:
    """The sum of the one-by-one gradients is the batch's gradient, and no parameter's is zero: a gate at zero would hide most of the work."""
    subject = tiny(name, 1)
    _, sums = prepare(STEP, subject)(subject.batches)
    assert len(sums) == len(list(subject.model.parameters())) and all(s.any() for s in sums)
    _, sum_sq = reference(subject)
    assert sum(float(s.square().sum()) for s in sums) * 4**2 == pytest.approx(sum_sq, rel=1e-4)
    assert all(p.grad is None for p in subject.model.parameters())


def test_builds_are_repeatable_and_leave_the_random_state() -> None:
    before = torch.get_rng_state()
    first, second = tiny("sit"), tiny("sit")
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert torch.equal(first.batches[1]["x"], second.batches[1]["x"])
    assert not torch.equal(first.batches[0]["x"], first.batches[1]["x"])


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", PEERS_INSTALLED)
def test_installed_peers_agree_or_say_why_not(name: str) -> None:
    subject = tiny("sit")
    assert max(errors(prepare(name, subject), subject, reference(subject))) < 1e-3


def test_a_row_per_method_with_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is absent, wrong or unable is a row with its reason and no time."""

    def refuse(model: Any, loss: Any) -> peers.One:
        raise NotImplementedError("no rule for Block\nat all")

    def halve(model: Any, loss: Any) -> peers.One:
        def one(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            loss(model, batch).sum().backward()
            return torch.ones(4)

        return one

    monkeypatch.setitem(peers.PEERS, "backpack", refuse)
    monkeypatch.setitem(peers.PEERS, "torchjd", halve)
    monkeypatch.setattr(peers, "installed", lambda name: name != "opacus")
    monkeypatch.setattr(bench, "LEAST_S", 1e-9)
    result = bench.measure_subject(tiny("sit"), ["loop", "vmap-interval", "opacus", "backpack", "torchjd"], rounds=3, memory=False)
    rows = {row["method"]: row for row in result["methods"]}
    assert rows["opacus"]["status"] == "not installed"
    assert rows["backpack"]["status"] == "refuses: no rule for Block"
    assert rows["torchjd"]["status"].startswith("disagrees: off by")
    assert all(rows[name]["time"] is None for name in ("opacus", "backpack", "torchjd"))
    for name in ("loop", "vmap-interval"):
        assert rows[name]["status"] == "ok" and rows[name]["error"] < 1e-4 and rows[name]["memory"] is None
        assert 0 < rows[name]["time"]["low"] <= rows[name]["time"]["median"] <= rows[name]["time"]["high"]
    table = bench.text(result)
    assert "opacus          gradients and sum     not installed" in table
    assert "vmap-interval   moments and interval" in table


def test_json_and_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(SUBJECTS, "conv", TINY["convnet"])
    monkeypatch.setattr(bench, "LEAST_S", 1e-9)
    words = ("--subjects", "conv", "--methods", "loop,vmap", "--rounds", 1, "--batches", 2, "--no-memory")
    assert call(bench.main, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["environment"]["versions"]["torch"] == torch.__version__
    (result,) = found["subjects"]
    assert result["subject"] == "conv" and result["batches"] == 2 and result["step"]["seconds"] > 0
    assert [row["method"] for row in result["methods"]] == ["loop", "vmap"]
    assert call(bench.main, *words) == 0
    assert "2 batches of 4:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--subjects", "sit-384,nope"), f"--subjects 'nope' does not exist; choose from {', '.join(SUBJECTS)}"),
        (("--methods", "nope"), f"--methods 'nope' does not exist; choose from {', '.join(METHODS)}"),
        (("--rounds", "0"), "--rounds 0: must be at least 1 and at most 10000"),
        (("--batches", "0"), "--batches 0: must be at least 1 and at most 10000"),
    ],
)
def test_bad_input_names_the_choices(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError) as error:
        call(bench.main, *words)
    assert str(error.value) == message


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    process = Forked(["bench", "--methods", "nope"], tmp_path, tmp_path / "printed")
    assert process.end() == 2 and (tmp_path / "printed").read_text() == ""
    assert len(process.error.strip().splitlines()) == 1 and "choose from loop, vmap" in process.error


@pytest.mark.skipif(torch.cuda.is_available() or not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_peak_is_that_of_the_call_alone() -> None:
    """A tensor of 64 MiB made and dropped in the call counts, one dropped before does not. 1 MiB for what Python takes."""
    torch.ones(128 << 18)
    assert peak_bytes(lambda: torch.ones(64 << 18)) == pytest.approx(64 << 20, abs=1 << 20)
    assert peak_bytes(lambda: None) < 1 << 20


def test_the_process_that_measures_memory_prints_bytes() -> None:
    done = run_module("gsnr", "bench", "--memory-of", STEP, "--subjects", "conv", "--batches", "1")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1 << 20
