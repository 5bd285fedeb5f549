"""CKNNA against sums written out in loops, linear probes against scikit-learn's, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gsnr import intervals, table
from gsnr.probes import representation
from gsnr.probes.common import linear_probe
from gsnr.probes.common.command import main
from gsnr.train.data.heldout import heldout_batches
from tests.conftest import call
from tests.probes.subjects import subject_of


def naive_cknna(a: NDArray, b: NDArray, k: int) -> float:
    """Huh et al. 2024: unit vectors, mutual neighbours, unbiased HSIC as three sums over distinct indices."""
    n = len(a)
    kernels = []
    for x in (a, b):
        kernels.append([[float(x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))) for j in range(n)] for i in range(n)])
    near = [[sorted((j for j in range(n) if j != i), key=lambda j, row=kernel[i]: -row[j])[:k] for i in range(n)] for kernel in kernels]

    def hsic(p: int, q: int) -> float:
        both = [[float(j in near[p][i] and j in near[q][i]) for j in range(n)] for i in range(n)]
        x = [[both[i][j] * kernels[p][i][j] if i != j else 0.0 for j in range(n)] for i in range(n)]
        y = [[both[i][j] * kernels[q][i][j] if i != j else 0.0 for j in range(n)] for i in range(n)]
        trace = sum(x[i][j] * y[j][i] for i in range(n) for j in range(n))
        product = sum(map(sum, x)) * sum(map(sum, y)) / ((n - 1) * (n - 2))
        cross = sum(x[i][j] * y[j][m] for i in range(n) for j in range(n) for m in range(n)) * 2 / (n - 2)
        return (trace + product - cross) / (n * (n - 3))

    return hsic(0, 1) / np.sqrt(hsic(0, 0) * hsic(1, 1))


def test_cknna() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(24, 5)), rng.normal(size=(24, 7))
    b[:, :5] += 2 * a
    assert representation.cknna(a, b, 4) == pytest.approx(naive_cknna(a, b, 4), rel=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert representation.cknna(a, 3 * a @ rotation, 4) == pytest.approx(1, rel=1e-9)
    independent = [representation.cknna(rng.normal(size=(200, 8)), rng.normal(size=(200, 8)), 10) for _ in range(20)]
    assert 0.03 < np.mean(independent) < 0.07, "of features that know nothing of one another it is about k / n: the shuffled control shows it"


def test_the_interval_of_a_proportion_holds_it() -> None:
    """At 0 and 1 Wilson's formula ends there up to rounding: not always on the right side."""
    for n in range(1, 2000):
        for share in (0.0, 0.5, 1.0):
            low, high = intervals.wilson(share, n)
            assert low <= share <= high


def test_linear_probes_solved_together() -> None:
    """Those of scikit-learn at a tolerance that leaves nothing: weights within 1e-4, each as it is alone; a feature that never varies counts for
    nothing, and one that hardly differs from another breaks nothing."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 3, 6))
    y, y_held = rng.integers(0, 3, 300), rng.integers(0, 3, 200)
    x, x_held = (centres[:, labels] * [[[0.5]], [[1]], [[3]]] + rng.normal(size=(3, len(labels), 6)) + 40 for labels in (y, y_held))
    for each in (x, x_held):
        each[1, :, 0] = 7
        each[2, :, 0] = each[2, :, 1] + 1e-7 * rng.normal(size=each.shape[1])
    found = linear_probe.accuracies(*map(torch.from_numpy, (x, 10 + 2 * y, x_held, 10 + 2 * y_held)))
    scaled = [StandardScaler().fit_transform(each) for each in x]
    weights, _ = linear_probe.fit(torch.from_numpy(np.stack(scaled)), torch.from_numpy(y), 3)
    for k in range(3):
        exact = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10000, C=0.1, tol=1e-10)).fit(x[k], y)
        np.testing.assert_allclose(weights[k].T, exact[-1].coef_, atol=1e-4)
        assert found[k] == exact.score(x_held[k], y_held)
        alone, _ = linear_probe.fit(torch.from_numpy(scaled[k][None]), torch.from_numpy(y), 3)
        torch.testing.assert_close(alone[0], weights[k], atol=1e-4, rtol=0)
    low, high = intervals.wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_a_linear_probe_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "STEPS", 2)
    z = torch.randn(1, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="did not converge in 2 steps"):
        linear_probe.fit(z, (z[0, :, 0] > 0).long(), 2)


def test_images_are_read_once_and_are_those_of_heldout_batches(smoke_run: Path) -> None:
    """Bit for bit, at the times of each bin."""
    subject, options = subject_of(smoke_run), representation.Options(n_images=70, first_image=3, seed=5)
    _, images = representation._images(subject, options)
    for low, high in ((0.0, 0.5), (0.3, 0.7)):
        plain = [batch for _, batch in heldout_batches(subject.splits["heldout"], 70, 5, "heldout", low, high, (), first=3)]
        for key in ("latent", "noise", "t", "label"):
            one, two = (torch.cat([batch[key] for batch in batches]) for batches in (plain, images.between(low, high)))
            assert torch.equal(one, two), key


def test_the_table(smoke_run: Path, tmp_path: Path) -> None:
    words = ("--ckpt", smoke_run, "--probe", "representation", "--bins", 2, "--n-images", 40)
    assert call(main, *words, "--out", tmp_path) == 0
    rows = table.read(tmp_path / "representation.parquet")
    assert set(rows["metric"]) == {"linear_probe_accuracy", "cknna"} and set(rows["group"]) == {"block 1", "block 2", "block 3"}
    assert len(rows) == 2 * 3 * 4 and (rows["control"] == "shuffled").sum() == (rows["control"] == "constant").sum() == 2 * 3
    true = rows[rows["control"] == "none"]
    assert ((true["low"] <= true["value"]) & (true["value"] <= true["high"])).all()
    with pytest.raises(ValueError, match="--n-images 14: CKNNA with 10 neighbours needs more than 14 images"):
        call(main, *words[:-1], 14, "--out", tmp_path / "few")


def test_the_class_is_not_told(smoke_run: Path) -> None:
    """Hidden states do not depend on the labels."""
    subject = subject_of(smoke_run)
    g = torch.Generator().manual_seed(0)
    batch = {"latent": torch.randn(4, 4, 8, 8, generator=g), "noise": torch.randn(4, 4, 8, 8, generator=g), "t": torch.rand(4, generator=g)}
    one, two = (representation._hidden(subject, batch | {"label": torch.tensor(labels)}) for labels in ([0, 1, 2, 3], [9, 8, 7, 6]))
    assert torch.equal(one, two)
