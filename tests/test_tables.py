"""Averages over the trajectory: against the formula for each image left out, written out; differences paired by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from figures import tables
from gsnr import table
from tests.conftest import call


def test_averages_and_paired_differences(probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cells, samples = (table.read(probed_run / "probes" / f"alignment{kind}.parquet") for kind in ("", ".samples"))
    found = tables.trajectory(cells, samples).set_index("name")

    def gsnr_without(rows: dict, left_out: int | None) -> float:
        """U / V of one bin from q_i and r_i = g_i . S, by the definitions, without one image."""
        q, r = rows["q"].to_numpy(), rows["r"].to_numpy()
        n, s = len(q), r.sum()
        if left_out is not None:
            s, q, n = s - 2 * r[left_out] + q[left_out], np.delete(q, left_out), n - 1
        return ((s - q.sum()) / (n * (n - 1))) / ((q.sum() - s / n) / (n - 1))

    def averages(target: str, left_out: int | None) -> float:
        of = samples[(samples["target"] == target) & (samples["control"] == "none") & (samples["projector"] == "fit") & (samples["group"] == "all")]
        return float(np.mean([256 * gsnr_without(of[of["bin"] == index], left_out) for index in range(3)]))

    from scipy import stats

    own, mid = ([averages(t, i) for i in (None, *range(24))] for t in ("ahpa", "uniform_mid"))
    for name, value, without in (("all t", own[0], own[1:]), ("all t minus first", mid[0] - own[0], np.subtract(mid[1:], own[1:]))):
        row = found.loc["AHPA" if name == "all t" else "uniform mid"]
        half = stats.t.ppf(0.975, 23) * np.sqrt(23 / 24 * np.square(without - np.mean(without)).sum())
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert (row[f"{name} high"] - row[f"{name} low"]) / 2 == pytest.approx(half, rel=1e-3)
    assert np.isnan(found.loc["AHPA", "all t minus first"]) and np.isnan(found.loc["AHPA, own projector", "all t minus first"])

    assert call(tables.main, "--run", probed_run, "--out", tmp_path) == 0
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    assert "| AHPA, shuffled |" in capsys.readouterr().out


def test_bad_input(smoke_run: Path, probed_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--run", tmp_path), "no such table; measure it with `python -m gsnr.probe --ckpt"),
        (("--run", probed_run, "--probe", "router"), "choose from alignment, vae_swap"),
        (("--run", probed_run, "--group", "block 9"), "choose from all, "),
    ):
        with pytest.raises(ValueError, match=message):
            call(tables.main, *words)
