"""How easy a target is: against an optimised constant and a brute-force jackknife, and the table with the router beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gsnr import table
from gsnr.figures import fig_easy
from gsnr.probes.common import summary
from gsnr.probes.common.command import main
from gsnr.probes.common.easy import Easiness
from gsnr.train import opening
from gsnr.train.command import main as train
from gsnr.train.data.heldout import order
from gsnr.train.runs import checkpoint
from tests.conftest import call


def test_measures() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=(7, 5, 4)) + np.array([2.0, 0, 0, 1])
    easiness = Easiness()
    easiness.add(torch.from_numpy(f[:3]))
    easiness.add(torch.from_numpy(f[3:]))
    found = easiness.measures()
    c = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        c += 0.1
    optimizer = torch.optim.LBFGS([c], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -torch.cosine_similarity(c.expand(35, 4), torch.from_numpy(f).reshape(35, 4), dim=-1).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found["constant_cosine"][0] == pytest.approx(-closure().item(), rel=1e-6), "the best constant's cosine"
    assert found["norm"][0] == pytest.approx(np.linalg.norm(f, axis=-1).mean())
    assert found["mean_share"][0] == pytest.approx(np.square(f.mean((0, 1))).sum() / np.square(f).sum(-1).mean())
    units = f / np.linalg.norm(f, axis=-1, keepdims=True)
    left_out = [np.linalg.norm(np.delete(units, i, 0).mean((0, 1))) for i in range(7)]
    half = 1.96 * np.sqrt(6 / 7 * np.square(left_out - np.mean(left_out)).sum())
    assert found["constant_cosine"][2] - found["constant_cosine"][0] == pytest.approx(half, rel=1e-9)


def test_a_constant_target_is_as_easy_as_can_be() -> None:
    easiness = Easiness()
    easiness.add(torch.ones(5, 3, 4))
    assert easiness.measures()["constant_cosine"][0] == pytest.approx(1) and easiness.measures()["mean_share"][0] == pytest.approx(1)


def test_a_constant_target_is_flagged_as_easy() -> None:
    """A constant vector reaches all that any projector can reach of it; of features without a mean it reaches nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for name, target in (("constant", torch.ones(40, 3, 4)), ("centred", torch.from_numpy(rng.normal(size=(40, 3, 4))))):
        easiness = Easiness()
        easiness.add(target, target + 0.1 * torch.from_numpy(rng.normal(size=(40, 3, 4))))
        key = {"run": "r", "checkpoint": "c", "target": name, "control": "none", "projector": "fit", "bin": 0, "t_low": 0.0, "t_high": 0.5}
        rows += easiness.rows(key)
    metrics = pd.DataFrame(rows)
    shares = metrics[metrics["metric"] == "constant_share"].set_index("target")["value"]
    assert shares["constant"] > 1 and shares["centred"] < 0.3
    assert summary.easy(metrics).splitlines()[1:] == ["  constant at all t"]
    assert summary.easy(metrics[metrics["target"] == "centred"]) == ""


def test_the_table(smoke_run: Path, plain_run: Path, tmp_path: Path) -> None:
    words = ("--probe", "controls", "--bins", 2, "--n-images", 16)
    assert call(main, "--ckpt", smoke_run, *words, "--out", tmp_path / "ahpa") == 0
    rows = table.read(tmp_path / "ahpa" / "controls.parquet")
    layers = rows[rows["bin"] == -1]
    assert set(layers["target"]) == {"G1", "G2", "G3", "G4", "teacher"}
    weights = layers[layers["metric"] == "router_weight"]
    assert len(weights) == 8 and weights["value"].sum() == pytest.approx(1, rel=1e-5)
    assert set(layers[layers["metric"] == "constant_cosine"]["group"]) >= set(weights["group"])
    drawn = [text.get_text() for text in fig_easy.draw(rows).axes[0].get_legend().get_texts()]
    assert drawn == ["G1 (not offered)", "G2 (not offered)", "G3", "G4", "teacher (not offered)", "weight that the router gave it"]
    with pytest.raises(ValueError, match="no layers of the VAE encoder"):
        fig_easy.draw(rows[rows["metric"] == "norm"])
    target = rows[rows["group"] == "target"]
    assert set(target["metric"]) == {"constant_cosine", "norm", "mean_share", "projector_cosine", "constant_share"} and set(target["bin"]) == {0, 1}
    assert call(main, "--ckpt", plain_run, *words, "--out", tmp_path / "plain") == 0
    assert set(table.read(tmp_path / "plain" / "controls.parquet")["metric"]) == {"constant_cosine", "norm", "mean_share"}


def test_layers_are_normalised_as_the_target_normalises_them(tmp_path: Path) -> None:
    """G4, which the target mixes, against numpy; G1, which it does not, as cached."""
    run = tmp_path / "standardised"
    assert call(train, "--preset", "smoke", "--alignment.features", "standardise", "--steps", 2, "--out", run) == 0
    assert call(main, "--ckpt", run, "--probe", "controls", "--bins", 2, "--n-images", 16) == 0
    rows = table.read(run / "probes" / "controls.parquet")
    found = rows[rows["metric"] == "constant_cosine"].set_index("group")["value"]
    header, splits = opening.data_of(checkpoint.load(run, "ema"), None)
    everything, first = (
        splits[name].take(index, ("G1", "G4")) for name, index in (("train", np.arange(splits["train"].size)), ("heldout", order(256)[:16]))
    )
    for group, standardised in (("G1", False), ("G4", True)):
        f, of_train = first[group].astype(np.float64), everything[group].astype(np.float64)
        if standardised:
            f = (f - of_train.mean((0, 3, 4), keepdims=True)) / of_train.std((0, 3, 4), keepdims=True)
        units = f / np.linalg.norm(f, axis=2, keepdims=True)
        for layer, name in enumerate(header.layers[group]):
            assert found[name] == pytest.approx(np.linalg.norm(units[:, layer].mean((0, 2, 3))), rel=2e-3), name
