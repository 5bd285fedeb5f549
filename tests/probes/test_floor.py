"""Floors, underfits, and what --check says, on tables and arrays made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gsnr
from gsnr import table
from gsnr.probes.common import checking, floor
from gsnr.probes.common.candidates import Candidate
from gsnr.probes.common.command import main
from gsnr.probes.common.options import TargetOptions
from tests.conftest import call


def estimate(mean: float, seed: int = 0, n: int = 200) -> gsnr.Estimate:
    """Of gradients of ten dimensions with unit noise about a mean along the first; the same noise for a seed."""
    g = np.random.default_rng(seed).normal(size=(n, 10))
    g[:, 0] += mean
    s = g.sum(0)
    return gsnr.Estimate(group="all", q_n=(g**2).sum(1), r_n=g @ s, sum_sq=float(s @ s))


def candidate(target: str, control: str = "none", projector: str = "fit") -> Candidate:
    return Candidate(target=target, control=control, projector=projector, alignment=None)  # type: ignore[arg-type]


def test_a_target_is_held_against_its_own_controls_or_the_first_target_s() -> None:
    made = [candidate("a"), candidate("a", "shuffled"), candidate("a", "shuffled_class"), candidate("b"), candidate("b", "shuffled"), candidate("c")]
    made += [candidate("a", projector="ckpt"), candidate("a", "constant", "ckpt")]
    of = {c.name: [x.name for x in floor.controls_of(c, made)] for c in made}
    assert of["a"] == ["a [shuffled]"] and of["b"] == ["b [shuffled]"] and of["c"] == ["a [shuffled]"]
    assert of["a [ckpt]"] == ["a [constant] [ckpt]"] and of["a [shuffled]"] == []


def test_above_the_floor_is_a_paired_test() -> None:
    made = [candidate("a"), candidate("a", "shuffled"), candidate("a", "constant")]
    high, low, none = estimate(1.0), estimate(0.3), estimate(0.0, seed=1)
    by = {"a": {"all": high}, "a [shuffled]": {"all": low}, "a [constant]": {"all": none}}
    found = floor.columns(made[0], made, by, "all")
    assert found["floor"] == low.gsnr and (found["floor_low"], found["floor_high"]) == low.ci() and found["above_floor"]
    assert gsnr.difference_ci(high, low)[0] > 0
    same = by | {"a": {"all": estimate(0.33)}}
    assert not floor.columns(made[0], made, same, "all")["above_floor"], "within the noise of the difference"
    undetected = {"a": {"all": none}, "a [shuffled]": {"all": estimate(0.0, seed=2)}, "a [constant]": {"all": estimate(0.0, seed=3)}}
    assert not floor.columns(made[0], made, undetected, "all")["above_floor"]
    alone = floor.columns(made[0], made[:1], by, "all")
    assert np.isnan(alone["floor"]) and not alone["above_floor"]


def test_underfit_needs_more_than_noise() -> None:
    constant = torch.ones(100) + 0.1 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = 0.1 * torch.randn(100, generator=torch.Generator().manual_seed(1))
    assert floor.underfit(constant + 0.1 + noise, constant) and not floor.underfit(constant + noise, constant)
    assert not floor.underfit(constant - 0.1 + noise, constant)


def test_repetitions_of_a_measurement() -> None:
    made = checking.repetitions(TargetOptions(n_images=64, fit_samples=1000, fit_steps=10, first_image=64), 192)
    assert [(o.fit_samples, o.fit_steps, o.seed, o.first_image) for o in made.values()] == [  # type: ignore[attr-defined]
        (500, 5, 0, 64),
        (2000, 20, 0, 64),
        (1000, 10, 1, 64),
        (1000, 10, 0, 128),
    ]
    assert "other images" not in checking.repetitions(TargetOptions(n_images=64), 127)


def _cells(gsnr_of: dict[str, tuple[float, float]], cosine: float = 0.5) -> pd.DataFrame:
    rows = [
        {"target": target, "control": "none", "projector": "fit", "bin": i, "gsnr": value, "below_detection": value < 0.1, "above_floor": value > 0.2}
        for target, values in gsnr_of.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(run="r", checkpoint="c", vae="v", group="all", cos_denoise=cosine)


def test_what_is_kept() -> None:
    first = _cells({"a": (0.5, 0.05), "b": (0.3, 0.04)})
    again = {"half the fit": _cells({"a": (0.4, 0.05), "b": (0.45, 0.04)}), "another seed": _cells({"a": (0.15, 0.3), "b": (0.1, 0.04)}, -0.5)}
    kept = checking.compare(first, again).groupby(["target", "bin"])[list(checking.KEPT)].mean()
    assert kept.loc[("a", 0)].tolist() == [0.5, 0.5, 0.5], "not above its floor with another seed; a sign turned; a rank lost in half the fit"
    assert kept.loc[("a", 1)].tolist()[0::2] == [0.5, 1.0] and np.isnan(kept.loc[("a", 1), "kept_sign"])
    assert kept.loc[("b", 1)].tolist()[0::2] == [1.0, 1.0]


def test_the_command_checks_and_is_not_repeated(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--ckpt", smoke_run, "--probe", "alignment", "--targets", "uniform_mid", "--projector", "fit", "--controls", "shuffled", "--check")
    words = (*words, "--bins", 1, "--n-images", 8, "--fit-samples", 128, "--out", tmp_path)
    assert call(main, *words) == 0
    said = capsys.readouterr().out
    assert "half the fit, twice the fit, another seed, other images" in said and "uniform mid, shuffled" in said
    assert sorted(p.name for p in (tmp_path / "check").iterdir()) == ["another-seed", "half-the-fit", "other-images", "twice-the-fit"]
    kept = table.read(tmp_path / "alignment.check.parquet")
    assert set(kept["metric"]) == set(checking.KEPT) and len(kept) == 2 * 3
    assert call(main, *words) == 0
    assert capsys.readouterr().out.count("there already") == 5
