"""Averages over the trajectory: against the cells' own intervals and the values without each image, written out; differences paired by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gsnr import table
from gsnr.figures import tables
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

    def of_bins(target: str) -> tuple[np.ndarray, np.ndarray]:
        """(3, 25) values without no image and without each; (3,) half widths, as the cells say."""
        here = cells[(cells["target"] == target) & (cells["control"] == "none") & (cells["projector"] == "fit") & (cells["group"] == "all")]
        of = samples[(samples["target"] == target) & (samples["control"] == "none") & (samples["projector"] == "fit") & (samples["group"] == "all")]
        values = [[256 * gsnr_without(of[of["bin"] == index], i) for i in (None, *range(24))] for index in range(3)]
        return np.array(values), 128 * (here["gsnr_high"] - here["gsnr_low"]).to_numpy()

    (own, own_half), (mid, mid_half) = of_bins("ahpa"), of_bins("uniform_mid")
    for name, value, without, half in (
        ("all t", own[:, 0].mean(), own[:, 1:], own_half / 3),
        ("all t minus first", (mid - own)[:, 0].mean(), np.concatenate([mid, -own])[:, 1:], np.concatenate([mid_half, own_half]) / 3),
    ):
        row = found.loc["AHPA" if name == "all t" else "uniform mid"]
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-4)
        assert (row[f"{name} high"] - row[f"{name} low"]) / 2 == pytest.approx(np.sqrt(half @ np.corrcoef(without) @ half), rel=1e-3)
    one = cells["bin"] == 1
    alone = tables.trajectory(cells[one], samples[samples["bin"] == 1]).set_index("name").loc["AHPA"]
    cell = cells[one & (cells["target"] == "ahpa") & (cells["projector"] == "fit") & (cells["control"] == "none") & (cells["group"] == "all")].iloc[0]
    assert (alone["all t low"], alone["all t high"]) == pytest.approx((256 * cell["gsnr_low"], 256 * cell["gsnr_high"]), rel=1e-4)
    assert "t > 0.5" not in alone, "a bin across the middle belongs to no half"
    fewer = cells[~((cells["target"] == "uniform_mid") & one)]
    assert np.isnan(tables.trajectory(fewer, samples).set_index("name").loc["uniform mid", "all t minus first"]), "other bins are no comparison"
    assert np.isnan(found.loc["AHPA", "all t minus first"]) and np.isnan(found.loc["AHPA, own projector", "all t minus first"])

    assert call(tables.main, "--run", probed_run, "--out", tmp_path) == 0
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    assert "| AHPA, shuffled |" in capsys.readouterr().out
    whole = (tmp_path / "table_alignment.md").read_text()
    assert call(tables.main, "--run", probed_run / "probes", "--group", "block 1", "--out", tmp_path) == 0
    assert (tmp_path / "table_alignment.md").read_text() == whole and "group 'block 1'" in (tmp_path / "table_alignment_block_1.md").read_text()
    with pytest.raises(ValueError, match="no samples of uniform mid, bin 2"):
        tables.trajectory(cells, samples[~((samples["target"] == "uniform_mid") & (samples["bin"] == 2))])


def test_bad_input(smoke_run: Path, probed_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--run", tmp_path), "no such table; measure it with `gsnr probe --ckpt"),
        (("--run", probed_run, "--probe", "router"), "choose from alignment, vae_swap"),
        (("--run", probed_run, "--group", "block 9"), "choose from all, "),
    ):
        with pytest.raises(ValueError, match=message):
            call(tables.main, *words)
