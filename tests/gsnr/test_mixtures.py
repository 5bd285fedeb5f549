"""Mixtures of losses: the quadratic model in closed form, against grids of weights and simulated steps, and scaled losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gsnr.mixtures import Products, agnostic, best_direction, best_ratio, descent, mixture, power, products, weight_intervals

A = np.array([1.0, 0.5, -0.3, 0.0])
TARGETS = {"one": np.array([0.8, 0.0, 0.0, 0.5]), "two": np.array([0.2, 0.9, -0.6, -0.5]), "against": np.array([-1.0, -0.2, 0.1, 0.3])}
NOISE = {"one": 0.5, "two": 1.0, "against": 0.2}
BATCH = 8


class Point(nn.Module):
    """theta = 0. L_d = |theta - a|^2 / 2 and L_k = |theta - a_k|^2 / 2, a_k with noise of its own a sample: gradients -a and -a_k."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))


def pull(name: str, scale: float = 1.0):
    return lambda model, batch: scale * 0.5 * (model.theta - batch[name]).square().sum(1)


def batches(n: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    made = {name: torch.from_numpy(x + NOISE[name] * rng.standard_normal((n, 4))) for name, x in TARGETS.items()}
    return [made | {"main": torch.from_numpy(A + 0.5 * rng.standard_normal((n, 4)))}]


def measured(n: int = 400, scales: dict[str, float] | None = None) -> Products:
    losses = {name: pull(name, (scales or {}).get(name, 1.0)) for name in TARGETS}
    return products(Point(), losses, pull("main"), batches(n), engine="vmap")


def truth() -> tuple[np.ndarray, np.ndarray]:
    """c and A of the quadratic model: noise is independent between targets, of trace 4 sigma^2."""
    y = np.stack(list(TARGETS.values()))
    return y @ A, y @ y.T + np.diag([4 * NOISE[name] ** 2 for name in TARGETS]) / BATCH


def grid() -> np.ndarray:
    """Weights that sum to 1, in steps of 1/60."""
    return np.array([(i, j, 60 - i - j) for i in range(61) for j in range(61 - i)]) / 60


def test_products_against_double_loops() -> None:
    p, (data,) = measured(20), batches(20)
    g = {name: -x.numpy() for name, x in data.items()}
    off = ~np.eye(20, dtype=bool)
    for i, one in enumerate(TARGETS):
        assert p.c_K[i] == pytest.approx((g[one] @ g["main"].T)[off].mean(), rel=1e-9)
        for j, two in enumerate(TARGETS):
            centred = [g[name] - g[name].mean(0) for name in (one, two)]
            assert p.m_KK[i, j] == pytest.approx((g[one] @ g[two].T)[off].mean(), rel=1e-9)
            assert p.v_KK[i, j] == pytest.approx((centred[0] * centred[1]).sum() / 19, rel=1e-9)
    left = products(Point(), {name: pull(name) for name in TARGETS}, pull("main"), [{k: x[1:] for k, x in data.items()}], engine="vmap")
    for which in ("c", "m", "v"):
        whole, part = getattr(left, f"{which}_K{'' if which == 'c' else 'K'}"), getattr(p, f"{which}_NK{'' if which == 'c' else 'K'}")[0]
        np.testing.assert_allclose(part, whole, rtol=1e-9)


def test_closed_form_and_every_single_target() -> None:
    """On the truth: the closed form A^-1 c of its support, no worse than any of a grid, and strictly better than each target alone. The measured
    weights are within 0.08 of it."""
    c, a = truth()
    w = best_direction(c, a)
    assert w[2] == 0 and w[:2] == pytest.approx(np.linalg.solve(a[:2, :2], c[:2]) / np.linalg.solve(a[:2, :2], c[:2]).sum(), rel=1e-9)
    assert descent(w, c, a) >= max(descent(v, c, a) for v in grid())
    assert all(descent(w, c, a) > 1.02 * descent(v, c, a) for v in np.eye(3))
    found = mixture(measured(1500), BATCH)
    np.testing.assert_allclose(found.weights, w, atol=0.08)
    assert found.helps and found.descent == pytest.approx(descent(w, c, a), rel=0.15)


def test_descent_is_that_of_a_simulated_step() -> None:
    """20,000 steps along batch gradients from 0, each direction at its best step size: mean fall of L_d."""
    rng, (c, a) = np.random.default_rng(1), truth()
    y = np.stack(list(TARGETS.values()))
    noise = np.array([NOISE[name] for name in TARGETS])[:, None, None]
    g_KRD = -(y[:, None] + noise * rng.standard_normal((3, 20_000, 4)) / np.sqrt(BATCH))
    for w in (best_direction(c, a), np.array([1.0, 0, 0]), np.array([0.3, 0.3, 0.4])):
        step = (w @ c) / (w @ a @ w)
        theta = -step * np.einsum("k,krd->rd", w, g_KRD)
        falls = 0.5 * (A @ A - np.square(theta - A).sum(1))
        assert 2 * falls.mean() == pytest.approx(descent(w, c, a), rel=0.05)


def test_scaled_losses() -> None:
    """Weights scale inversely, shares do not change."""
    scales = {"one": 10.0, "two": 0.1, "against": 3.0}
    plain, scaled = mixture(measured(), BATCH), mixture(measured(scales=scales), BATCH)
    np.testing.assert_allclose(scaled.shares, plain.shares, atol=1e-9)
    expected = plain.weights / np.array(list(scales.values()))
    np.testing.assert_allclose(scaled.weights, expected / expected.sum(), atol=1e-9)


def test_the_rival_that_knows_no_main_loss() -> None:
    p = measured(1500)
    w = best_ratio(p.m_KK, p.v_KK)
    ratios = [(v @ p.m_KK @ v) / (v @ p.v_KK @ v) for v in (w, *grid())]
    assert ratios[0] == pytest.approx(max(ratios), rel=1e-3) and ratios[0] >= max(ratios) * (1 - 1e-12)
    assert agnostic(p, BATCH).weights == pytest.approx(w) and agnostic(p, BATCH).weights[2] > 0.4, "the cleanest target, which ascends"


def test_nothing_that_descends_and_what_cannot_be() -> None:
    p = products(Point(), {"against": pull("against")}, pull("main"), batches(50), engine="vmap")
    assert not mixture(p, BATCH).helps and mixture(p, BATCH).weights == pytest.approx([1]) and mixture(p, BATCH).descent == 0
    twice = {"one": pull("one"), "again": pull("one")}
    with pytest.raises(ValueError, match="two losses of the mixture have the same gradients"):
        mixture(products(Point(), twice, pull("main"), batches(50), engine="vmap"), BATCH)
    with pytest.raises(ValueError, match="batch 51: a mixture is found for batches of 1 to 50"):
        power(p, 51)
    with pytest.raises(ValueError, match="a mixture of 0 losses: 1 to 8 are needed"):
        products(Point(), {}, pull("main"), batches(9))


def test_intervals_of_weights_hold_the_truth() -> None:
    w = best_direction(*truth())
    for k, (low, high) in enumerate(weight_intervals(measured(400), BATCH)):
        assert low - 1e-12 <= w[k] <= high + 1e-12 and high - low < 0.5
