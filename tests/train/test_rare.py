"""RARE: whitening, the regression on the layer below, the target and the loss, against plain numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gsnr.train import losses
from gsnr.train.alignments.rare import Alignment
from gsnr.train.config import ModelConfig
from gsnr.train.contracts.problem import TrainSplit, batch_of, hidden, made, randomised
from gsnr.train.data.heldout import order
from gsnr.train.priors import whiten
from tests.train.in_numpy import f64, tokens

RNG = np.random.default_rng(0)


def test_whitened_tokens_have_unit_covariance() -> None:
    x = RNG.normal(size=(500, 6)) @ RNG.normal(size=(6, 6)) + 3
    w = whiten.whitening(np.cov(x.T, bias=True), 4)
    np.testing.assert_allclose(np.cov(((x - x.mean(0)) @ w).T, bias=True), np.eye(4), atol=1e-10)
    moments = whiten.Moments.of(x[:200]) + whiten.Moments.of(x[200:])
    np.testing.assert_allclose(moments.about(moments.mean), np.cov(x.T, bias=True), atol=1e-10)
    np.testing.assert_allclose(moments.about(np.ones(6)), (x - 1).T @ (x - 1) / 500, atol=1e-10)


def test_a_direction_that_does_not_vary_stays_small() -> None:
    x = np.concatenate([RNG.normal(size=(500, 2)), np.zeros((500, 1))], 1)
    assert np.abs(x @ whiten.whitening(np.cov(x.T, bias=True), 3)[:, 2]).max() < 1e-6


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_reduced_rank_ridge_against_augmented_least_squares(rank: int) -> None:
    """Least squares on data with sqrt(N penalty) I below them, cut to the leading directions of its fit by a singular value decomposition."""
    x, penalty = RNG.normal(size=(60, 4)), 0.3
    y = x @ RNG.normal(size=(4, 4)) + RNG.normal(size=(60, 4))
    got = whiten.reduced_rank_ridge(x.T @ x / 60, x.T @ y / 60, penalty, rank)
    tall_x, tall_y = np.concatenate([x, np.sqrt(60 * penalty) * np.eye(4)]), np.concatenate([y, np.zeros((4, 4))])
    full = np.linalg.lstsq(tall_x, tall_y, rcond=None)[0]
    _, _, v = np.linalg.svd(tall_x @ full)
    np.testing.assert_allclose(got, full @ v[:rank].T @ v[:rank], atol=1e-8)
    assert whiten.error(x.T @ x / 60, x.T @ y / 60, y.T @ y / 60, got) == pytest.approx(((y - x @ got) ** 2).sum(1).mean())


def test_the_regression_is_the_one_that_does_best_on_tokens_set_aside() -> None:
    """Of low rank where the truth is, and none of it where there is nothing to predict."""

    def means(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 8))
        both = np.concatenate([x, np.outer(x[:, 0], np.ones(8)) + rng.normal(size=(n, 8))], 1)
        return both.T @ both / n

    b = whiten.chosen(means(40, 0), means(4000, 1), 8)
    assert np.linalg.matrix_rank(b, tol=1e-8) == 1
    tried = [whiten.reduced_rank_ridge(means(40, 0)[:8, :8], means(40, 0)[:8, 8:], p, r) for p in whiten.PENALTIES for r in (1, 2, 4, 8)]
    there = means(4000, 1)
    assert whiten.error(there[:8, :8], there[:8, 8:], there[8:, 8:], b) == min(
        whiten.error(there[:8, :8], there[:8, 8:], there[8:, 8:], one) for one in tried
    )


def calibrated(**options: object) -> Alignment:
    alignment = made("rare", **options)
    alignment.calibrate(TrainSplit())  # type: ignore[arg-type]
    assert isinstance(alignment, Alignment)
    return alignment


def spatial(y_TC: np.ndarray) -> np.ndarray:
    return (y_TC - 0.6 * y_TC.mean(0)) / (y_TC.std(0, ddof=1) + 1e-6)


def train_tokens(group: str, layer: int) -> np.ndarray:
    """(N,T,C) of all images, in the fixed random order, each 256 sorted."""
    f = TrainSplit().take(np.sort(order(TrainSplit.size)), (group,))[group][:, layer].astype(np.float64)
    return f.reshape(*f.shape[:2], -1).transpose(0, 2, 1)


def test_the_target_of_one_layer_in_numpy() -> None:
    alignment, batch = calibrated(rank=5), batch_of()
    flat = train_tokens("teacher", 0).reshape(-1, 7)
    variance, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    got = f64(alignment.target(batch, hidden()))
    for b in range(3):
        x = (tokens(f64(batch["teacher"][b, 0])) - flat.mean(0)) @ vectors[:, ::-1][:, :5] / np.sqrt(variance[::-1][:5])
        sign = np.sign((got[b] * spatial(x)).sum(0))  # of an eigenvector it is a convention
        np.testing.assert_allclose(got[b], spatial(x * sign), rtol=1e-3, atol=1e-3)


def test_an_increment_is_what_the_layer_below_does_not_tell() -> None:
    """x_i - x_j B of layers 1 and 2 of G4 with B chosen on every eighth image; its deviation and norm drop out of the spatial normalisation."""
    alignment, batch = calibrated(source="G4", layer=2), batch_of()
    below, own = train_tokens("G4", 0), train_tokens("G4", 1)
    maps = [whiten.whitening(np.cov(f.reshape(-1, 6).T, bias=True), 6) for f in (below, own)]
    x = [(f - f.mean((0, 1))) @ w for f, w in zip((below, own), maps, strict=True)]
    aside = np.arange(len(own)) % 8 == 0
    both = np.concatenate(x, -1)
    means = [(m := both[mask].reshape(-1, 12)).T @ m / len(m) for mask in (~aside, aside)]
    b = whiten.chosen(*means, 6)
    got = f64(alignment.target(batch, hidden()))
    for i in range(3):
        f_j, f_i = (tokens(f64(batch["G4"][i, layer])) for layer in (0, 1))
        increment = (f_i - own.mean((0, 1))) @ maps[1] - (f_j - below.mean((0, 1))) @ maps[0] @ b
        scaled = 3 * increment / np.maximum(increment.std(0), 0.1)  # c_i and D_i change nothing
        np.testing.assert_allclose(got[i], spatial(increment), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(got[i], spatial(scaled), rtol=1e-3, atol=1e-3)


def test_the_loss_in_numpy() -> None:
    z, y = torch.randn(3, 9, 5), torch.randn(3, 9, 5)
    z[0, 0] = y[0, 0]  # a token that is aligned: the least weight
    got = f64(losses.residual_cosine(z, y))
    for b in range(3):
        c = np.array([p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(f64(z[b]), f64(y[b]), strict=True)])
        eta = (1 - c) / 2
        w = np.clip(eta / eta.mean(), 0.25, 4)
        w = w / w.mean()
        assert got[b] == pytest.approx(1 - (w * c).mean(), rel=1e-5)
    assert torch.equal(losses.residual_cosine(y, y).abs() < 1e-6, torch.ones(3, dtype=torch.bool))


def test_weights_of_tokens_carry_no_gradient() -> None:
    z, y = torch.randn(1, 9, 5, requires_grad=True), torch.randn(1, 9, 5)
    losses.residual_cosine(z, y).sum().backward()
    cos = torch.nn.functional.cosine_similarity(z, y, dim=-1)
    eta = (1 - cos.detach()) / 2
    w = (eta / eta.mean()).clamp(0.25, 4)
    (grad,) = torch.autograd.grad(-(w / w.mean() * cos).mean(), z)
    torch.testing.assert_close(z.grad, grad)


def test_calibration_is_deterministic_and_lies_in_the_checkpoint() -> None:
    one, two = calibrated(source="G3"), calibrated(source="G3")
    assert all(torch.equal(x, two.state_dict()[key]) for key, x in one.state_dict().items() if not key.startswith("projector"))
    other = randomised(made("rare", source="G3"))
    assert torch.isnan(other.target(batch_of(), hidden())).all(), "never calibrated"
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.target(batch_of(), hidden()), one.target(batch_of(), hidden()))


def test_size_of_the_projector_at_b_and_bad_options() -> None:
    groups = {"teacher": (1, 768, 16, 16)}
    with torch.device("meta"):
        full = made("rare", model=ModelConfig(hidden_size=768, depth=12, num_heads=12), groups=groups)
    assert sum(p.numel() for p in full.parameters()) == 768 * 128 * 9 + 128
    with pytest.raises(ValueError, match=r"alignment.layer 2: group teacher has layers 1 to 1"):
        made("rare", layer=2)
    with pytest.raises(ValueError, match=r"alignment.source 'G5' does not exist; choose from teacher, G1, G2, G3, G4"):
        made("rare", source="G5")
