"""Each metric against an independent float64 computation, closed forms, and the contract of metrics, found by file name."""

from __future__ import annotations

from itertools import product
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel

from gsnr import plugins
from gsnr.intervals import jackknife_se
from gsnr.train.contracts import metrics as contract
from gsnr.train.metrics import Blocks, Moments, Rows, _frechet, _pairs
from gsnr.train.metrics._frechet import Distance, extrapolated

WIDTH = 2048


def metric(name: str) -> ModuleType:
    return plugins.find("metrics", name)


def features(n: int, seed: int, width: int = WIDTH, rank: int = 4, shift: float = 0.0) -> Rows:
    """A cloud of a few dimensions in many, as images' features are, so that balls hold some points and not all."""
    rng, axes = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(rank, width))
    return ((rng.normal(size=(n, rank)) + shift) @ axes + 0.01 * rng.normal(size=(n, width))).astype(np.float32)


@pytest.mark.parametrize("name", plugins.names("metrics"))
def test_contract(name: str) -> None:
    assert contract.check(name)


def test_distance_of_gaussians() -> None:
    """Closed form where the covariances commute; scipy's sqrtm where they do not; zero for the same."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0.5, 2, 6), rng.uniform(0.5, 2, 6)
    m = rng.normal(size=6)
    one = Moments(n=9, mean=np.zeros(6), covariance=basis @ np.diag(a) @ basis.T)
    two = Moments(n=9, mean=m, covariance=basis @ np.diag(b) @ basis.T)
    assert Distance(two)(one) == pytest.approx(m @ m + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-10)
    x, y = rng.normal(size=(50, 6)) * [1, 2, 3, 1, 1, 1], rng.normal(size=(40, 6)) + 1
    p, q = Moments.of(x), Moments.of(y)
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert Distance(q)(p) == pytest.approx(expected, rel=1e-8)
    assert Distance(q)(p) == pytest.approx(Distance(p)(q), rel=1e-10)
    assert Distance(p)(p) == pytest.approx(0, abs=1e-10)


def test_frechet_of_2000_by_2048_features() -> None:
    """From streamed sums, against the root's trace as the sum of the singular values of X Y^T / 1999, X and Y centred (2000,2048)."""
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.1, 1, WIDTH)
    x = (np.abs(rng.normal(size=(2000, WIDTH))) * scale).astype(np.float32)
    y = (rng.normal(size=(2000, WIDTH)) * scale[::-1] + 0.1).astype(np.float32)
    streamed = Blocks(len(x), 2)
    for part in np.array_split(x, 17):
        streamed.add(part)
    one, two = x.astype(np.float64), y.astype(np.float64)
    centred = one - one.mean(0), two - two.mean(0)
    inner = centred[0] @ centred[1].T / 1999
    cross = np.sqrt(scipy.linalg.eigvalsh(inner @ inner.T).clip(0)).sum()
    expected = np.square(one.mean(0) - two.mean(0)).sum() + (np.square(centred[0]).sum() + np.square(centred[1]).sum()) / 1999 - 2 * cross
    assert Distance(Moments.of(y))(streamed.whole) == pytest.approx(expected, rel=1e-6)


def test_moments_are_streamed_over_random_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsnr.train.metrics.FLUSH", 7)
    x = features(203, 0, width=30)
    streamed = Blocks(len(x))
    for first in range(0, len(x), 13):
        streamed.add(x[first : first + 13])
    assert sorted(streamed.n_K) == [20] * 7 + [21] * 3
    for blocks in (range(10), [2, 5]):
        own = x[np.isin(streamed.block_N, list(blocks))].astype(np.float64)
        found = streamed.merged(blocks)
        assert found.n == len(own)
        np.testing.assert_allclose(found.mean, own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(own, rowvar=False), rtol=1e-9, atol=1e-12)


def test_spread_and_limit_of_the_frechet_distance() -> None:
    """The jackknife leaves blocks of rows out; the limit loses most of the bias, of samples of the reference's own law; and a line is exact."""
    x = np.random.default_rng(2).normal(size=(400, 8)).astype(np.float32)
    exact = Moments(n=None, mean=np.zeros(8), covariance=np.eye(8))
    found, blocks = metric("fid").measure(Blocks.of(x), exact), Blocks.of(x).block_N
    deleted = [Distance(exact)(Moments.of(x[blocks != k])) for k in range(10)]
    assert found["fid"] == pytest.approx(Distance(exact)(Moments.of(x)), rel=1e-9)
    assert found["fid_se"] == pytest.approx(jackknife_se(np.array(deleted)), rel=1e-6)
    assert abs(found["fid_infinity"]) < found["fid"] / 3
    assert extrapolated([(1 / n, 3 + 40 / n) for n in (100, 200, 500, 1000)]) == pytest.approx(3, rel=1e-12)
    few = metric("sfid").measure(Blocks.of(x[:15]), exact)
    assert few["sfid"] > 0 and few["sfid_se"] is None and few["sfid_infinity"] is None
    rooms = _frechet.with_spread("fdd", Blocks.of(x[:20]), exact)
    assert rooms["fdd_se"] is not None and rooms["fdd_infinity"] is None, "10 samples of 8 features are no room for a line in 1/n"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pairs, "ROWS", 70)
    monkeypatch.setattr(_pairs, "COLUMNS", 90)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("sizes", [(500, 400), (300, 1)], ids=str)
def test_balls(sizes: tuple[int, int]) -> None:
    """Precision, recall, density and coverage against whole matrices of distances; other sizes, and points that lie on one another."""
    x, y = features(sizes[0], 3, shift=0.5), features(400, 4)
    x[: sizes[1]] = y[: sizes[1]] if sizes[1] == 1 else x[: sizes[1]]
    y[7] = y[8]
    xx, yy, xy = (cdist(a.astype(float), b.astype(float), "sqeuclidean") for a, b in ((x, x), (y, y), (x, y)))
    near = lambda d, k: np.sort(d, axis=1)[:, k]
    expected = {
        "precision": (xy <= near(yy, 3)).any(1).mean(),
        "recall": (xy <= near(xx, 3)[:, None]).any(0).mean(),
        "density": (xy < near(yy, 5)).sum() / 5 / len(x),
        "coverage": (xy < near(yy, 5)).any(0).mean(),
    }
    found = {name: metric(name).measure(x, y)[name] for name in expected}
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(0.02 < value < 1.5 for value in found.values())


def test_balls_of_equal_and_of_separated_clouds() -> None:
    x = features(100, 5, width=8)
    for name, far in product(("precision", "recall", "density", "coverage"), (False, True)):
        value = metric(name).measure(x + 1000.0 * far, x)[name]
        assert value == (0 if far else pytest.approx(1, abs=0.2) if name == "density" else 1), name
    with pytest.raises(ValueError, match="3 images: a ball around one reaches its neighbour number 3, so at least 4 are needed"):
        metric("precision").measure(x, x[:3])


def test_kid() -> None:
    """One estimate against scikit-learn's kernel at full width; in expectation 0 for equal laws; 100 subsets of 1000."""
    x, y = features(300, 6), features(300, 7, shift=0.2)
    kernel = lambda a, b: polynomial_kernel(a.astype(float), b.astype(float), degree=3, gamma=1 / WIDTH, coef0=1)
    pairs = ~np.eye(300, dtype=bool)
    expected = kernel(x, x)[pairs].mean() + kernel(y, y)[pairs].mean() - 2 * kernel(x, y).mean()
    assert metric("kid").mmd(x.astype(float), y.astype(float)) == pytest.approx(expected, rel=1e-6)
    z = np.random.default_rng(0).normal(size=(400, 60, 3))
    equal = np.array([metric("kid").mmd(one[:30], one[30:]) for one in z])
    assert abs(equal.mean()) < 3 * equal.std() / np.sqrt(len(equal))
    small = metric("kid").measure(x[:40, :9], y[:50, :9])
    whole = metric("kid").measure(x[:40, :9], y[:40, :9])
    assert whole["kid"] == pytest.approx(metric("kid").mmd(x[:40, :9].astype(float), y[:40, :9].astype(float)), rel=1e-9), "subsets of all"
    assert whole["kid_std"] == pytest.approx(0, abs=1e-9) and small["kid_std"] > 0


@pytest.mark.usefixtures("small_blocks")
def test_cmmd_is_a_double_loop() -> None:
    x, y = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features(100, 8, width=12), features(80, 9, width=12, shift=1)))
    x, y = x.astype(np.float32), y.astype(np.float32)

    def mean(a: Rows, b: Rows) -> float:
        return float(np.mean([np.exp(-np.square(p.astype(float) - q).sum() / 200) for p in a for q in b]))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert metric("cmmd").measure(x, y)["cmmd"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0 and metric("cmmd").measure(x, x)["cmmd"] == pytest.approx(0, abs=1e-9)


def test_mind() -> None:
    """A loop over directions; of a shift by delta, exactly 3 D (delta . u)^2 on average over its directions, and 3 ||delta||^2 in expectation."""
    x, y = features(60, 10, width=7), features(50, 11, width=7, shift=0.3)
    rng = np.random.default_rng(0)
    kept = np.sort(rng.choice(60, 50, replace=False))
    total = 0.0
    for u in metric("mind").directions(rng, 1000, 7):
        total += np.mean([(p - q) ** 2 for p, q in zip(sorted(x[kept] @ u), sorted(y @ u), strict=True)])
    assert metric("mind").measure(x, y)["mind"] == pytest.approx(3 * 7 * total / 1000, rel=1e-6)
    delta = np.zeros(7)
    delta[2] = 2.0
    shifted = metric("mind").measure((x + delta).astype(np.float32), x)["mind"]
    along = (metric("mind").directions(np.random.default_rng(0), 1000, 7)[:, 2] * 2) ** 2
    assert shifted == pytest.approx(3 * 7 * along.mean(), rel=1e-4)
    assert abs(shifted - 3 * 4) < 3 * 3 * 7 * along.std() / np.sqrt(1000)


def test_inception_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop; one class each: their number; the same for all: 1; and the order of the file counts."""
    p = np.random.default_rng(0).dirichlet(np.ones(6), 50).astype(np.float32)
    score = metric("is").measure
    mean = p.astype(float).mean(0)
    expected = np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(row.astype(float), mean, strict=True)) for row in p]))
    assert score(p, None) == {"is": pytest.approx(expected, rel=1e-6), "is_std": None}
    assert score(np.tile(np.eye(5, dtype=np.float32), (8, 1)), None)["is"] == pytest.approx(5)
    assert score(np.full((9, 4), 0.25, np.float32), None)["is"] == pytest.approx(1)
    monkeypatch.setattr(metric("is"), "SPLIT", 10)
    eye = np.eye(5, dtype=np.float32)
    assert score(np.tile(eye, (6, 1)), None) == {"is": pytest.approx(5), "is_std": pytest.approx(0)}
    assert score(np.repeat(eye, 6, axis=0), None)["is"] < 3, "sorted by class"
