"""The balance rho of two losses: against the naive jackknife, Fieller's property, and the equilibrium of a quadratic model; by bins and by words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import gsnr
from gsnr.balance import BALANCED, HELPING, INDEPENDENT, OPPOSING, UNCLEAR, UNRESOLVED, Balance, balance


class Quadratic(nn.Module):
    """L_d = |theta - a|^2 / 2 and L_a = |theta - b|^2 / 2 of samples a_i = a + noise, b_i = b + noise: gradients theta - a_i and theta - b_i."""

    def __init__(self, theta: np.ndarray) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.from_numpy(theta))


def main(model: nn.Module, batch: dict) -> torch.Tensor:
    return 0.5 * (model.theta - batch["a"]).square().sum(1)


def align(model: nn.Module, batch: dict) -> torch.Tensor:
    return 0.5 * (model.theta - batch["b"]).square().sum(1)


def samples(a: np.ndarray, b: np.ndarray, noise: float, n: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{name: torch.from_numpy(x + noise * rng.standard_normal((n, len(x)))) for name, x in (("a", a), ("b", b))}]


def naive(g_a: np.ndarray, g_d: np.ndarray) -> tuple[float, float]:
    """I and U from all pairs of different samples."""
    n = len(g_a)
    off = ~np.eye(n, dtype=bool)
    return float((g_a @ g_d.T)[off].mean()), float((g_a @ g_a.T)[off].mean())


def test_against_double_loops_over_two_bins() -> None:
    a, b, theta, weights = np.array([1.0, 0, 2]), np.array([0.5, 1, 0]), np.zeros(3), (0.5, 2.0)
    bins = [samples(a, b, 1.0, 20), samples(2 * a, b - 1, 1.5, 20, seed=1)]
    found = balance([gsnr.compare(Quadratic(theta), align, main, own, "vmap")["all"] for own in bins], weights)
    g = [(-own[0]["b"].numpy(), -own[0]["a"].numpy()) for own in bins]
    total = lambda keep: np.array([[i, w * u] for (x, y), w in zip(g, weights, strict=True) for i, u in [naive(x[keep], y[keep])]]).sum(0)
    inner, pull = total(np.arange(20))
    assert (found.inner, found.pull) == pytest.approx((inner, pull), rel=1e-9)
    deleted = np.array([total(np.delete(np.arange(20), i)) for i in range(20)])
    cov = 19 / 20 * (deleted - deleted.mean(0)).T @ (deleted - deleted.mean(0))
    assert [found.inner_var, found.covariance, found.pull_var] == pytest.approx([cov[0, 0], cov[0, 1], cov[1, 1]], rel=1e-8)
    assert found.rho == pytest.approx(inner / pull)


def test_at_the_joint_optimum_rho_is_minus_one_whatever_the_target() -> None:
    """theta = (a + lambda b) / (1 + lambda)."""
    a, weight = np.array([1.0, 0, 2, 0]), 0.5
    for b in (a + 1, -a, np.array([0, 5.0, 0, 0])):
        theta = (a + weight * b) / (1 + weight)
        found = balance([gsnr.compare(Quadratic(theta), align, main, samples(a, b, 0.3, 400), "vmap")["all"]], [weight])
        assert found.ci()[0] < -1 < found.ci()[1] < -0.5 and found.state == BALANCED


def test_fiellers_interval_is_where_the_test_does_not_reject() -> None:
    b = Balance(inner=0.4, pull=1.3, inner_var=0.05, pull_var=0.09, covariance=-0.02, cosine=0.1, n=40)
    low, high = b.ci()
    assert b.p_below(high) == pytest.approx(0.025) and b.p_below(low) == pytest.approx(0.975)
    z = (0.4 + 0.5 * 1.3) / np.sqrt(0.05 - 2 * 0.5 * 0.02 + 0.25 * 0.09)
    assert b.p_below(-0.5) == pytest.approx(stats.t.cdf(z, 39))
    assert Balance(inner=0.4, pull=0.1, inner_var=0.05, pull_var=0.09, covariance=0.0, cosine=0.1, n=40).ci() == (-np.inf, np.inf)
    assert Balance(inner=-9.0, pull=0.0, inner_var=0.1, pull_var=0.0, covariance=0.0, cosine=np.nan, n=40).p_below(-0.5) == 1


def test_words() -> None:
    of = lambda inner, sd, pull=1.0: Balance(inner=inner, pull=pull, inner_var=sd**2, pull_var=1e-8, covariance=0.0, cosine=0.0, n=1000).state
    assert [of(0.3, 0.1), of(0.0, 0.1), of(-0.3, 0.1), of(-1.0, 0.1), of(0.0, 1.0)] == [HELPING, INDEPENDENT, OPPOSING, BALANCED, UNCLEAR]
    assert of(1.0, 0.1, pull=0.0) == UNRESOLVED


def test_intervals_cover() -> None:
    """Of 300 draws with rho known, 95 % within: between 91 and 99 %."""
    a, b = np.array([1.0, 0.5, 0, 0, 0, 0]), np.array([0.4, -1.0, 0.5, 0, 0, 0])
    truth, held = float(a @ b / (b @ b)), []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        x, y = (-(v + 2.0 * rng.standard_normal((60, 6))) for v in (b, a))
        s_x, s_y = x.sum(0), y.sum(0)
        q, r = (x * x).sum(1), x @ s_x
        estimate = lambda q, r: gsnr.Estimate(group="all", q_n=q, r_n=r, sum_sq=float(r.sum()))
        c = gsnr.Comparison(
            a=estimate(q, r),
            b=estimate((y * y).sum(1), y @ s_y),
            x_n=(x * y).sum(1),
            a_sum_b_n=x @ s_y,
            b_sum_a_n=y @ s_x,
            sum_ab=float(s_x @ s_y),
        )
        low, high = balance([c], [1.0]).ci()
        held.append(low <= truth <= high)
    assert 0.91 < np.mean(held) < 0.99


def test_errors() -> None:
    c = [gsnr.compare(Quadratic(np.zeros(2)), align, main, samples(np.ones(2), np.ones(2), 1.0, n), "vmap")["all"] for n in (8, 9)]
    with pytest.raises(ValueError, match=r"as many samples in each, and a weight of each: \[8, 9\] samples, 2 weights"):
        balance(c, [1.0, 1.0])
