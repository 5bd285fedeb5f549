"""CKNNA against sums written out in loops, the linear probe against a logistic regression by gradient descent, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gsnr import table
from gsnr.probes import representation
from gsnr.probes.common.command import main
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
            low, high = representation._wilson(share, n)
            assert low <= share <= high


def test_the_linear_probe() -> None:
    """Three noisy classes: the same predictions as a logistic regression fitted by gradient descent in torch, with the same penalty."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 6))
    y, y_held = rng.integers(0, 3, 300), rng.integers(0, 3, 200)
    x, x_held = centres[y] + rng.normal(size=(300, 6)), centres[y_held] + rng.normal(size=(200, 6))
    mean, std = x.mean(0), x.std(0)
    inputs, labels = torch.from_numpy((x - mean) / std), torch.from_numpy(y)
    weight, bias = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.nn.functional.cross_entropy(inputs @ weight + bias, labels, reduction="sum") + 0.5 / 0.1 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(closure)
    guess = (((x_held - mean) / std) @ weight.detach().numpy() + bias.detach().numpy()).argmax(1)
    assert representation._accuracy(x, y, x_held, y_held) == pytest.approx(float((guess == y_held).mean()), abs=1e-9)
    low, high = representation._wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_the_table(smoke_run: Path, tmp_path: Path) -> None:
    words = ("--ckpt", smoke_run, "--probe", "representation", "--bins", 2, "--n-images", 40)
    assert call(main, *words, "--out", tmp_path) == 0
    rows = table.read(tmp_path / "representation.parquet")
    assert set(rows["metric"]) == {"linear_probe_accuracy", "cknna"} and set(rows["group"]) == {"block 1", "block 2", "block 3"}
    assert len(rows) == 2 * 3 * 4 and (rows["control"] == "shuffled").sum() == (rows["control"] == "constant").sum() == 2 * 3
    true = rows[rows["control"] == "none"]
    assert ((true["low"] <= true["value"]) & (true["value"] <= true["high"])).all()
    with pytest.raises(ValueError, match="--n-images 13: CKNNA with 10 neighbours needs more than 13 images"):
        call(main, *words[:-1], 13, "--out", tmp_path / "few")


def test_the_class_is_not_told(smoke_run: Path) -> None:
    """Hidden states do not depend on the labels."""
    subject = subject_of(smoke_run)
    g = torch.Generator().manual_seed(0)
    batch = {"latent": torch.randn(4, 4, 8, 8, generator=g), "noise": torch.randn(4, 4, 8, 8, generator=g), "t": torch.rand(4, generator=g)}
    one, two = (representation._hidden(subject, batch | {"label": torch.tensor(labels)}) for labels in ([0, 1, 2, 3], [9, 8, 7, 6]))
    for block, h in one.items():
        np.testing.assert_array_equal(h, two[block])
