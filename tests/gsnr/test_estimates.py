"""U, V, plug-in, interval: against closed forms, and against the textbook definitions computed another way."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

import gsnr
from gsnr import intervals
from gsnr.estimates import Estimate, delete_one, trace_cov_sq
from tests.gsnr.problems import LinearRegression


def estimate_of(g: np.ndarray) -> Estimate:
    s = g.sum(0)
    return Estimate(group="all", q_n=(g**2).sum(1), r_n=g @ s, sum_sq=float(s @ s), cov_sq=float("nan"))


def test_unbiased_on_linear_regression_and_covers() -> None:
    """1000 repeats of n = 256 through `measure`: |bias| of U and V < 3 standard errors; the 95 % interval covers 93 to 97 %."""
    problem = LinearRegression(d=12, size=1.0, sigma=0.5)
    truth = problem.signal / problem.noise
    signals, noises, covered = [], [], 0
    for repeat in range(1000):
        e = gsnr.measure(problem.model, problem.loss, problem.batches(256, seed=repeat), engine="vmap", chunk=256)["all"]
        signals.append(e.signal)
        noises.append(e.noise)
        low, high = e.ci(0.95)
        covered += low <= truth <= high
        assert e.gsnr_plugin - e.gsnr == pytest.approx(1 / 256, rel=1e-9)
    for values, expected in ((signals, problem.signal), (noises, problem.noise)):
        assert abs(np.mean(values) - expected) < 3 * np.std(values, ddof=1) / np.sqrt(1000)
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize(("ratio", "least"), [(0.0, 0.93), (0.1, 0.93), (1.0, 0.93)])
def test_coverage_on_gaussian_gradients(ratio: float, least: float) -> None:
    """n = 256, 40 dimensions of unequal variance (effective dimension above 10): nominal 95 %, at 0 conservative."""
    rng = np.random.default_rng(1)
    variances = 1 / (1 + np.arange(40)) ** 0.5
    variances /= variances.sum()
    mean = rng.standard_normal(40)
    mean *= np.sqrt(ratio) / np.linalg.norm(mean)
    covered = 0
    for _ in range(1500):
        low, high = estimate_of(mean + rng.standard_normal((256, 40)) * np.sqrt(variances)).ci()
        covered += low <= ratio <= high
    assert covered / 1500 >= least
    if ratio > 0:
        assert covered / 1500 <= 0.97


def test_against_definitions() -> None:
    """U is the mean of g_i . g_j over i != j; V the trace of the sample covariance; delete-one values are those of the smaller set."""
    g = np.random.default_rng(0).standard_normal((7, 4)) + 0.3
    gram = g @ g.T
    e = estimate_of(g)
    assert e.signal == pytest.approx((gram.sum() - np.trace(gram)) / 42, rel=1e-12)
    assert e.noise == pytest.approx(np.trace(np.cov(g.T)), rel=1e-12)
    deleted_signal, deleted_noise = delete_one(e.q_n, e.r_n)
    for i in range(7):
        smaller = estimate_of(np.delete(g, i, axis=0))
        assert deleted_signal[i] == pytest.approx(smaller.signal, rel=1e-10)
        assert deleted_noise[i] == pytest.approx(smaller.noise, rel=1e-10)
    assert e.gsnr_plugin == pytest.approx((g.mean(0) ** 2).sum() / np.trace(np.cov(g.T)), rel=1e-12)


def test_signal_can_be_negative_and_is_reported_signed() -> None:
    e = estimate_of(np.array([[1.0, 0.0], [-1.0, 0.1], [0.0, -0.1], [0.0, 0.0]]))
    assert e.signal < 0
    assert e.gsnr < 0
    assert e.below_detection
    assert np.isnan(e.noise_scale)


@pytest.mark.parametrize("n", [6, 15, 16])
def test_trace_cov_sq_is_unbiased(n: int) -> None:
    rng = np.random.default_rng(3)
    variances = np.array([3.0, 1.0, 0.5])
    values = []
    for _ in range(4000):
        g = 0.5 + rng.standard_normal((n, 3)) * np.sqrt(variances)
        signs = np.where(np.arange(n) < rng.integers(n // 3, n - 1), 1.0, -1.0)
        e = np.where(np.arange(n) % 3 == 0, np.nan, g @ (signs @ g))  # a third of the products was not taken
        values.append(trace_cov_sq((g**2).sum(1), g @ g.sum(0), e, signs))
    assert abs(np.mean(values) - (variances**2).sum()) < 3 * np.std(values) / np.sqrt(4000)


def test_noise_only_gradients_exceed_the_detection_limit_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    over = 0
    for _ in range(2000):
        g = rng.standard_normal((64, 50))
        s = g.sum(0)
        e = Estimate(group="all", q_n=(g**2).sum(1), r_n=g @ s, sum_sq=float(s @ s), cov_sq=50.0)
        over += e.gsnr > e.detection_limit
    assert 0.01 < over / 2000 < 0.045  # 2.5 % for a normal estimate; U of pure noise is a little skewed to the right


def test_zero_gradients_are_undefined_not_zero() -> None:
    e = estimate_of(np.zeros((5, 3)))
    assert np.isnan(e.gsnr)
    assert e.n_zero == 5
    assert e.below_detection


def test_students_t_is_that_of_scipy_stats() -> None:
    for level in (0.5, 0.9, 0.95, 0.99, 0.999):
        for n in (3, 4, 10, 100, 1000, 100_000):
            assert intervals.student(n, level) == pytest.approx(scipy.stats.t.ppf(0.5 + level / 2, n - 1), rel=1e-12)
