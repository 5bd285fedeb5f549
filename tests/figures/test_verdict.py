"""`gsnr verdict`: in words what a measured run's table says; refusals name what to do."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import gsnr
from gsnr import table
from gsnr.figures import verdict
from tests.conftest import call


def test_of_a_measured_run(probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "v.csv"
    assert call(verdict.main, "--run", probed_run, "--csv", out) == 0
    said = capsys.readouterr().out
    cells = table.read(probed_run / "probes" / "alignment.parquet")
    expected = gsnr.verdict(cells, table.read(probed_run / "probes" / "alignment.metrics.parquet"))
    assert said.strip() == str(expected)
    assert len(pd.read_csv(out)) == len(expected.ranges)
    assert {r.t_low for r in expected.ranges} <= set(cells["t_low"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run", "{none}"), r"alignment.parquet: no such table; measure first with `gsnr probe --ckpt .* --probe alignment`"),
        (("--run", "{run}", "--group", "heads"), r"alignment.parquet: group 'heads' is not in the table; choose from all"),
        (("--run", "{run}", "--csv", "{none}/x.txt"), r"--csv .*: name a file that ends in .csv"),
    ],
)
def test_refusals(probed_run: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(verdict.main, *(word.format(run=probed_run, none=tmp_path) for word in words))
