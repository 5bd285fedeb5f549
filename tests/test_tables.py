"""Averages over the trajectory: against the cells' own intervals and the values without each image, written out; differences paired by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsnr import table
from gsnr.figures import summary, tables
from tests.conftest import call
from tests.figures.made import cells_of


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


KEYS = [(name, control, "fit") for name in ("repa", "sra", "mean") for control in ("none", "shuffled")] + [("spare", "none", "none")]


def test_a_summary_has_a_row_a_target() -> None:
    """Four bins, counted by hand: REPA is above the floor in two and its control off 0 in three; the control of `mean` has no gradient."""
    cells = cells_of([*KEYS, ("repa", "none", "ckpt")])
    cells = cells[cells["group"] == "all"].assign(gsnr_low=-0.1, gsnr_high=0.1, below_detection=False, above_floor=False, cos_denoise=-0.5)
    cells = cells.assign(cos_low=-0.75, cos_high=-0.25)
    of = {(t, c, p): (cells["target"] == t) & (cells["control"] == c) & (cells["projector"] == p) for t, c, p in KEYS}
    cells.loc[of["repa", "none", "fit"], "above_floor"] = [True, False, True, False]
    cells.loc[of["repa", "shuffled", "fit"], "gsnr_low"] = [0.01, -0.1, 0.01, -0.1]
    cells.loc[of["repa", "shuffled", "fit"], "gsnr_high"] = [0.1, 0.1, 0.1, -0.01]
    cells.loc[of["mean", "shuffled", "fit"], ["gsnr", "gsnr_low", "gsnr_high"]] = np.nan
    cells.loc[of["mean", "none", "fit"] | of["spare", "none", "none"], ["floor", "floor_low", "floor_high"]] = np.nan
    rows = cells.drop_duplicates(["target", "control", "projector"])[tables.WHICH].assign(name=lambda rows: rows["target"])
    halves = {
        f"t {side} 0.5{end}": rows["target"].map({"repa": 1.0, "sra": 3.0, "mean": 2.0, "spare": 99.0})
        for side in "<>"
        for end in ("", " low", " high")
    }
    found = summary.summarised(rows.assign(**halves), cells)
    assert found["name"].tolist() == ["sra", "mean", "repa", "spare"], "the highest first, losses without a projector last"
    shown = summary.readable(found).set_index("target")
    assert list(shown.index) == ["sra", "mean", "repa", "spare (no projector)"]
    assert shown["bins above the floor"].tolist() == ["0 of 4", "", "2 of 4", ""]
    assert shown["its shuffled control holds 0"].tolist() == ["4 of 4", "has no gradient", "1 of 4, above it in 2, below it in 1", ""]
    angle = "-0.50 [-0.75, -0.25]"
    assert shown["cosine to denoising, t < 0.25"].tolist() == ["", angle, angle, angle], "nothing is said of SRA, which is not above its floor"
    assert shown.loc["repa", "t < 0.5"] == "1.0 [1.0, 1.0]"
    with pytest.raises(ValueError, match="no projectors that were fitted alike"):
        summary.summarised(rows[rows["projector"] == "ckpt"], cells)


def test_a_summary_of_a_run(probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """G-SNR is that of the whole table."""
    assert call(tables.main, "--run", probed_run, "--out", tmp_path) == call(tables.main, "--run", probed_run, "--summary", "--out", tmp_path) == 0
    whole, short = (pd.read_csv(tmp_path / f"table_alignment{name}.csv").set_index(["target", "control", "projector"]) for name in ("", "_summary"))
    same = [column for column in short if column in whole and column not in ("run", "checkpoint", "vae", "name")]
    pd.testing.assert_frame_equal(short[same], whole.loc[short.index, same])
    assert {"t < 0.5", "t > 0.5 high"} <= set(same) and len(short) == short.index.get_level_values("target").nunique() > 2
    assert "| AHPA |" in capsys.readouterr().out and (tmp_path / "table_alignment_summary.tex").is_file()


def test_bad_input(smoke_run: Path, probed_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (("--run", tmp_path), "no such table; measure it with `gsnr probe --ckpt"),
        (("--run", probed_run, "--probe", "router"), "choose from alignment, vae_swap"),
        (("--run", probed_run, "--group", "block 9"), "choose from all, "),
        (("--run", probed_run, "--summary", "--probe", "vae_swap"), "--summary is of probe alignment, not vae_swap; leave one of the two out"),
    ):
        with pytest.raises(ValueError, match=message):
            call(tables.main, *words)
