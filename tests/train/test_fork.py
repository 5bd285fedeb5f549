"""Forks of a checkpoint: the same batches in all, what goes on and what starts afresh, resuming, and the arithmetic of their table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from gsnr import intervals
from gsnr.train import fork, opening, trainer
from gsnr.train.command import main as train
from gsnr.train.data import controls
from gsnr.train.data.batches import StepBatches
from gsnr.train.forking import compare, rows, tables
from gsnr.train.forking.compare import Measured
from gsnr.train.metrics import Moments
from gsnr.train.metrics._frechet import Distance
from tests.conftest import call
from tests.train.run_files import tensors

VANILLA = ["--preset", "smoke", "--alignment", "none", "--trackers", "none", "--data.demo-train", "32", "--data.demo-heldout", "8", "--batch", "4"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vanilla run of 4 steps."""
    run = tmp_path_factory.mktemp("parent") / "run"
    train([*VANILLA, "--steps", "4", "--save-every", "4", "--out", str(run)])
    return run


def words(parent: Path, out: Path, more: str = "") -> list[str]:
    return ["--ckpt", str(parent), "--steps", "3", "--out", str(out), *more.split()]


def test_the_vanilla_fork_is_the_run_that_goes_on(parent: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, moving average and optimizer, with the run's own seed."""
    train([*VANILLA, "--steps", "7", "--save-every", "4", "--out", str(tmp_path / "whole")])
    assert fork.main(words(parent, tmp_path / "forks", "--rows none --seeds 0")) == 0
    said = (tmp_path / "forks" / tables.WORDS).read_text()
    assert "none alone; there is nothing to compare" in said and "|" not in said and "two or more with --seeds" in said
    one, two = (tensors(run / "checkpoints/0000007") for run in (tmp_path / "whole", tmp_path / "forks/none-s0"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_rows_see_the_same_batches_and_differ_in_the_target_alone(parent: Path) -> None:
    base = opening.last_checkpoint(parent, "ema").config
    made = {word: rows.config_of(rows.parse(word), base, 5, 4, 3, {}) for word in ("none", "repa@2", "shuffled:repa@2")}
    batches = {}
    for word, config in made.items():
        _, splits = opening.open_data(config)
        batches[word] = StepBatches(split=splits["train"], groups=("teacher",), batch=4, seed=config.seed, label_dropout=config.label_dropout)[4]
    for key in ("latent", "noise", "t", "label", "label_drop"):
        assert torch.equal(batches["none"][key], batches["repa@2"][key]) and torch.equal(batches["none"][key], batches["shuffled:repa@2"][key])
    assert torch.equal(batches["none"]["teacher"], batches["repa@2"]["teacher"])
    assert not torch.equal(batches["none"]["teacher"], batches["shuffled:repa@2"]["teacher"])
    assert made["repa@2"].alignment == made["shuffled:repa@2"].alignment and made["repa@2"].alignment["tap"] == 2


def test_controls_of_features(parent: Path) -> None:
    base = opening.last_checkpoint(parent, "ema").config
    _, splits = opening.open_data(base)
    train_split, index = splits["train"], np.arange(32, dtype=np.int64)
    plain = train_split.take(index, ("teacher", "mean"))
    made = {name: controls.ControlledSplit(train_split, name, 3) for name in controls.CONTROLS}
    found = {name: split.take(index, ("teacher", "mean", "label")) for name, split in made.items()}
    assert all(np.array_equal(rows_of["mean"], plain["mean"]) for rows_of in found.values())
    shuffled = found["shuffled"]["teacher"]
    sums = lambda x: np.sort(x.astype(np.float64).sum((1, 2, 3, 4)))
    np.testing.assert_array_equal(sums(shuffled), sums(plain["teacher"]))  # a permutation of the split
    assert not any(np.array_equal(a, b) for a, b in zip(shuffled, plain["teacher"], strict=True))  # nobody's own
    partner = made["shuffled_class"].partner_N
    labels = found["shuffled_class"]["label"]
    counts = np.bincount(labels, minlength=10)
    assert all(labels[partner[i]] == labels[i] for i in index if counts[labels[i]] > 1)
    mean_LC = train_split.statistics()["teacher_mean"]
    assert (found["constant"]["teacher"] == mean_LC.astype(np.float16)[None, :, :, None, None]).all()
    again = controls.ControlledSplit(train_split, "random", 3).take(index[::-1].copy(), ("teacher",))["teacher"][::-1]
    np.testing.assert_array_equal(found["random"]["teacher"], again)  # an image's own, in whatever order
    spread = found["random"]["teacher"].astype(np.float64).std((0, 3, 4)) / train_split.statistics()["teacher_std"]
    assert abs(spread.mean() - 1) < 0.05  # of 32 x 64 numbers a channel: each is within 2 %


def test_forks_are_measured_compared_and_not_done_again(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "forks"
    asked = words(parent, out, "--rows repa@1,shuffled:repa@1 --seeds 0,1 --lr 1e-3")
    assert fork.main([*asked, "--dry-run"]) == 0 and not out.exists()
    assert "6 forks of 3 steps, 6 to do" in capsys.readouterr().out
    assert fork.main(asked) == 0
    runs = pd.read_csv(out / tables.TABLE)
    found = pd.read_csv(out / tables.DIFFERENCES).query("t_low == 0 and t_high == 1").set_index("row")
    assert len(runs) == 6 and list(found.index) == ["repa@1", "shuffled:repa@1"]
    by = runs.set_index(["row", "seed"])["velocity_loss"]
    d = np.array([by["repa@1", s] - by["none", s] for s in (0, 1)])
    assert found.loc["repa@1", "difference"] == pytest.approx(d.mean(), abs=1e-12)
    half = stats.t.ppf(0.975, 1) * d.std(ddof=1) / np.sqrt(2)
    assert found.loc["repa@1", "over_seeds_high"] == pytest.approx(d.mean() + half, abs=1e-12)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("measured.json")}
    assert fork.main(asked) == 0 and before == {path: path.stat().st_mtime_ns for path in out.rglob("measured.json")}
    assert "effects above" in capsys.readouterr().out
    assert json.loads((out / tables.RESULT).read_text())["about"]["lr"] == 1e-3
    with pytest.raises(ValueError, match=r"none-s0: a fork whose lr was 0.001, now 0.002; name a new folder"):
        fork.main(words(parent, out, "--rows none --lr 2e-3"))


def test_a_fork_that_was_stopped_goes_on(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the midst of training: the same bits as one that was not."""
    asked = "--rows repa@1 --seeds 1 --n-images 8"
    assert fork.main(words(parent, tmp_path / "whole", asked)) == 0
    monkeypatch.setattr(trainer.Preemption, "agreed", lambda self, accelerator, step: step == 5)
    with pytest.raises(ValueError, match=r"stopped at step 5 of 7; call the same again"):
        fork.main(words(parent, tmp_path / "cut", asked))
    monkeypatch.undo()
    assert fork.main(words(parent, tmp_path / "cut", asked)) == 0
    assert (tmp_path / "whole" / tables.TABLE).read_bytes() == (tmp_path / "cut" / tables.TABLE).read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--rows rpea", "--rows 'rpea' does not exist"),
        ("--rows repa@9", "--rows repa@9: alignment.tap 9: this model has blocks 1 to 3"),
        ("--rows repa:0.5-0.5", "t goes from 0 to 1, upwards"),
        ("--rows none@2", "none has no alignment, and so no block"),
        ("--rows shuffled:sra2@1", "its target is no feature of the cache, so that it has no control 'shuffled'"),
        ("--rows shufled:repa", "control 'shufled' does not exist; choose from shuffled"),
        ("--rows va-repa:0-0.5", "has the schedule 't_sigmoid' already"),
        ("--rows repa,repa", "--rows 'repa,repa': names 'repa' twice"),
        ("--rows repa --seeds 00,0", "--seeds '0,0': names '0' twice"),
        ("--rows repa --metrics recall", "name a number of samples"),
        ("--rows repa --model.depth 2", "--model.depth: a fork has it from the checkpoint"),
        ("--rows repa --only repa,7", "--only 'repa,7': is none of the forks"),
    ],
)
def test_bad_input(parent: Path, tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        fork.main(words(parent, tmp_path / "forks", more))
    assert not (tmp_path / "forks").exists()


def test_a_schedule_that_is_over(parent: Path) -> None:
    base = opening.last_checkpoint(parent, "ema").config
    with pytest.raises(ValueError, match="its schedule is over before step 801"):
        rows.config_of(rows.parse("haste-features"), base, 0, 800, 10, {})


def test_a_range_of_t_keeps_the_budget(parent: Path) -> None:
    base = opening.last_checkpoint(parent, "ema").config
    config = rows.config_of(rows.parse("repa@1:0.25-0.75=0.3"), base, 0, 4, 3, {})
    weight = rows.make_schedule(config.schedule).weight(5, torch.tensor([0.1, 0.3, 0.7, 0.9]))
    assert weight.tolist() == [0.0, 2.0, 2.0, 0.0] and config.alignment["weight"] == 0.3


def _measured(row: str, seed: int, loss_TN: np.ndarray, deleted_K: np.ndarray) -> Measured:
    values = {"velocity_loss": float(loss_TN.mean()), "frechet": float(deleted_K.mean())}
    return Measured(row=row, seed=seed, values=values, loss_TN=loss_TN, deleted_K=deleted_K)


def test_differences_by_hand() -> None:
    """Paired over images and over blocks; an unpaired interval would be wider by far."""
    generator = np.random.default_rng(0)
    base = generator.normal(size=(2, 50))
    shift = generator.normal(0.1, 0.01, size=(2, 50))
    blocks = generator.normal(size=16)
    forks = [_measured("none", 0, base, blocks), _measured("a", 0, base + shift, blocks + np.linspace(1, 2, 16))]
    found = {(d.metric, d.t_low, d.t_high): d for d in compare.differences(forks, "none")}
    whole = found["velocity_loss", 0.0, 1.0]
    mean_N = shift.mean(0)
    low, high = stats.t.interval(0.95, 49, mean_N.mean(), stats.sem(mean_N))
    assert whole.over_images == pytest.approx((low, high)) and whole.difference == pytest.approx(shift.mean())
    assert np.isnan(whole.over_seeds).all() and not whole.separates  # one seed
    assert found["velocity_loss", 0.5, 1.0].difference == pytest.approx(shift[1].mean())
    d_K = np.linspace(1, 2, 16)
    half = stats.t.ppf(0.975, 15) * np.sqrt(15 / 16 * np.square(d_K - d_K.mean()).sum())
    assert found["frechet", 0.0, 1.0].over_images == pytest.approx((1.5 - half, 1.5 + half))


def test_deleted_distances_leave_one_block_out() -> None:
    generator = np.random.default_rng(1)
    features, reference = generator.normal(size=(64, 3)).astype(np.float32), Moments.of(generator.normal(size=(90, 3)))
    found = compare.deleted_distances(features, reference)
    block = np.random.default_rng(0).permutation(64) % 16
    naive = [Distance(reference)(Moments.of(features[block != k])) for k in range(16)]
    np.testing.assert_allclose(found, naive, rtol=1e-9)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_detectable_effect_has_the_power_it_says(n: int) -> None:
    """Against scipy's noncentral t, whose law it is not computed by."""
    shift = intervals.detectable_effect(2.0, n) / 2.0 * np.sqrt(n)
    threshold = stats.t.ppf(0.975, n - 1)
    assert stats.nct.sf(threshold, n - 1, shift) + stats.nct.cdf(-threshold, n - 1, shift) == pytest.approx(0.8, abs=1e-4)


def test_power_of_the_table() -> None:
    """Two rows with spreads 1 and 3 over three seeds; vanilla's spread is its own."""
    base = np.array([1.0, 2.0, 4.0])
    offsets = {"none": np.zeros(3), "a": np.array([-1.0, 0.0, 1.0]), "b": np.array([-3.0, 0.0, 3.0])}
    forks = [_measured(row, s, np.full((1, 4), base[s] + off[s]), np.zeros(2)) for row, off in offsets.items() for s in range(3)]
    (found, _) = compare.power(forks, compare.differences(forks, "none"), "none")
    assert found.vanilla_sd == pytest.approx(base.std(ddof=1)) and found.paired_sd == pytest.approx(np.sqrt(5.0))
    assert found.unpaired == pytest.approx(intervals.detectable_effect(np.sqrt(2) * base.std(ddof=1), 3))


def test_a_run_that_decides_as_it_goes_is_not_gone_on_with(tmp_path: Path) -> None:
    """What it has released would come alive again."""
    words = ("--preset", "smoke", "--stop-rule", "plateau", "--stop-rule.ramp", 2, "--steps", 2, "--trackers", "none", "--out", tmp_path / "run")
    assert call(train, *words) == 0
    with pytest.raises(ValueError, match=r"--rows own: its run decides as it goes \(--stop-rule\)"):
        call(fork.main, "--ckpt", tmp_path / "run", "--rows", "own", "--steps", 2, "--out", tmp_path / "forks")
    with pytest.raises(ValueError, match=r"--rows reg: changes the model \(extra_token\)"):
        call(fork.main, "--ckpt", tmp_path / "run", "--rows", "reg", "--steps", 2, "--out", tmp_path / "forks")
    assert not (tmp_path / "forks").exists()
