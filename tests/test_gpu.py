"""`python -m tests.gpu` at toy sizes on a CPU: the stages run, their rows say what they should, and one that fails costs the others nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import __main__ as command
from tests.gpu import engines, exactness, machine, probe, training
from tests.gpu.report import markdown


def test_exactness_at_toy_size() -> None:
    rows = [*exactness.of_sit(True), exactness.devices_agree(True), *exactness.of_convolutions(True)]
    exact = [row for row in rows if "square norm" in row and "bfloat16" not in row["what"] and "tf32" not in row["what"]]
    assert len(exact) >= 12
    assert all(max(row["square norm"], row["of the sum"], row["with the sum"]) < 1e-5 for row in exact)
    low = [row for row in rows if "square norm" in row and "bfloat16" in row["what"]]
    assert low and all(1e-5 < row["square norm"] < 5e-2 for row in low)
    assert "signs agree" in next(row["note"] for row in rows if row["what"] == "this device against the CPU")


@pytest.mark.parametrize(("stage", "least"), [(machine, 10), (engines, 4), (training, 2), (probe, 5)])
def test_stage_at_toy_size(stage, least: int) -> None:  # type: ignore[no-untyped-def]
    rows = list(stage.rows(True))
    assert len(rows) >= least
    assert not [row for row in rows if str(row.get("status", "")).startswith(("refuses", "disagrees"))]
    assert stage.LIMIT_S > 0 and "|" in markdown([{"stage": "x", "title": stage.TITLE, "status": "ok", "seconds": 1.0, "rows": rows}])


def test_a_stage_that_fails_or_hangs_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = command._run("machine", True, tmp_path, limit_s=0.01)
    assert done["status"].startswith("stopped after") and done["rows"] == []
    monkeypatch.setenv("PYTHONWARNINGS", "error::UserWarning:nowhere")  # read by the child alone
    records = list(command._stages(["machine", "resume"], True, tmp_path, budget_s=0.5))
    assert [record["status"] == "ok" for record in records] == [False, False]
    assert json.loads(json.dumps(records)) and "not begun" in markdown(records)


def test_wrong_words_end_in_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.gpu", "--only", "speed"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "choose from machine, smoke, exactness, resume, probe, engines, training" in done.stderr
