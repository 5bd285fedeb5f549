"""The closed-form ridge regression against scikit-learn, and its penalties against a search by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from gsnr.probes.common.ridge import CHOOSES, PENALTIES, SOLVES, Outputs, Reader, Ridge

N, CHOSEN = 400, 100  # rows, and how many of them choose the penalty


def data(seed: int = 0) -> tuple[NDArray, dict[str, NDArray]]:
    """Correlated inputs of large and different means and scales; a strong output, a weak one, and one that x says nothing of."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(N, 6)) @ rng.normal(size=(6, 6))) * np.array([1, 10, 0.1, 1, 1, 3]) + np.array([0, 50, 300, -20, 1, 0])
    strong = x @ rng.normal(size=(6, 3)) + 0.1 * rng.normal(size=(N, 3)) + 1000
    weak = 0.3 * x[:, :2] @ rng.normal(size=(2, 2)) / 10 + 5 * rng.normal(size=(N, 2))
    return x, {"strong": strong, "weak": weak, "nothing": rng.normal(size=(N, 4)) - 7}


def solve(x: NDArray, y: dict[str, NDArray], batches: int = 1, dtype: torch.dtype = torch.float64, flat: bool = False) -> dict[str, Reader]:
    outputs = Outputs({name: values.shape[1] for name, values in y.items()})
    ridge = Ridge(outputs)
    for part, rows in ((CHOOSES, np.arange(CHOSEN)), (SOLVES, np.arange(CHOSEN, N))):
        for index in np.array_split(rows, batches):
            each = {name: torch.from_numpy(values[index]).to(dtype) for name, values in y.items()}
            ridge.add(torch.from_numpy(x[index]).to(dtype), outputs.add(torch.cat(list(each.values()), dim=1) if flat else each, part))
    return ridge.solve()


def sklearn_ridge(x: NDArray, y: NDArray, penalty: float) -> tuple[NDArray, NDArray]:
    """Weights of raw inputs, and intercepts: scikit-learn's penalty is of sums, ours of means."""
    scaler = StandardScaler().fit(x)
    model = SklearnRidge(alpha=penalty * len(x), solver="cholesky").fit(scaler.transform(x), y)
    weight = model.coef_.T / scaler.scale_[:, None]
    return weight, model.intercept_ - scaler.mean_ @ weight


def test_against_scikit_learn_with_penalties_searched_by_brute_force() -> None:
    x, y = data()
    for name, reader in solve(x, y).items():
        errors = {}
        for penalty in PENALTIES:
            weight, bias = sklearn_ridge(x[CHOSEN:], y[name][CHOSEN:], penalty)
            errors[penalty] = np.square(y[name][:CHOSEN] - x[:CHOSEN] @ weight - bias).sum()
        best = min(errors, key=errors.__getitem__)
        assert reader.penalty == best, name
        held = np.square(y[name][:CHOSEN] - y[name][CHOSEN:].mean(0)).sum()
        assert reader.r2 == pytest.approx(1 - errors[best] / held, abs=1e-8)
        weight, bias = sklearn_ridge(x, y[name], best)
        np.testing.assert_allclose(reader.weight_PC, weight, rtol=1e-6, atol=1e-9 * np.abs(weight).max())
        np.testing.assert_allclose(reader(torch.from_numpy(x)), x @ weight + bias, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize(("batches", "flat"), [(3, False), (CHOSEN, True)])
def test_the_same_in_any_batches(batches: int, flat: bool) -> None:
    x, y = data()
    one, other = solve(x, y), solve(x, y, batches, flat=flat)
    for name, reader in one.items():
        assert other[name].penalty == reader.penalty
        np.testing.assert_allclose(other[name].weight_PC, reader.weight_PC, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(other[name].bias_C, reader.bias_C, rtol=1e-7)


def test_float32_with_large_means() -> None:
    """Predictions of float32 data, whose means are up to 3000 of their deviations, against float64: of those of y within 1e-3."""
    x, y = data()
    x, y = x.astype(np.float32), {name: values.astype(np.float32) for name, values in y.items()}  # the same rounded data for both
    exact, found = solve(x, y), solve(x, y, 7, torch.float32)
    for name, values in y.items():
        one, other = (readers[name](torch.from_numpy(x)) for readers in (exact, found))
        np.testing.assert_allclose(other, one, atol=1e-3 * values.std(), rtol=0)


def test_what_x_says_nothing_of() -> None:
    """R^2 within 0.02 of 0, the mean is left; an input that never varies gets no weight, and a repeated one breaks nothing."""
    x, y = data()
    x = np.concatenate([x, np.full((N, 1), 3.0), x[:, :1]], axis=1)
    found = solve(x, y)
    assert abs(found["nothing"].r2) < 0.02 and found["nothing"].penalty >= 1
    spread = found["nothing"](torch.from_numpy(x)).std(0) / torch.from_numpy(y["nothing"]).std(0)
    assert float(spread.max()) < 0.1
    assert float(found["strong"].weight_PC[6].abs().max()) < 1e-6
    assert found["strong"].r2 > 0.99


def test_what_cannot_be_solved() -> None:
    outputs = Outputs({"y": 1})
    ridge = Ridge(outputs)
    with pytest.raises(ValueError, match="needs data to solve from and data to choose"):
        ridge.solve()
    ridge.add(torch.ones(3, 2), outputs.add({"y": torch.ones(3, 1)}, SOLVES))
    with pytest.raises(ValueError, match="needs data to solve from and data to choose"):
        ridge.solve()
    ridge.add(torch.full((3, 2), float("nan")), outputs.add({"y": torch.ones(3, 1)}, CHOOSES))
    with pytest.raises(ValueError, match="not finite"):
        ridge.solve()


def images(n: int, grid: int, channels: int, seed: int) -> torch.Tensor:
    """(n, grid^2, channels) float64, of means that are far from 0 and that depend on the place."""
    g = torch.Generator().manual_seed(seed)
    place = torch.randn(1, grid * grid, channels, generator=g, dtype=torch.float64)
    return torch.randn(n, grid * grid, channels, generator=g, dtype=torch.float64) + place + 20


def unfolded(h_BTD: torch.Tensor, kernel: int) -> torch.Tensor:
    """(B,T,P) in the order (row, column, channel): what a convolution multiplies its weights with, written out."""
    grid = round(h_BTD.shape[1] ** 0.5)
    x_BDPT = F.unfold(h_BTD.mT.unflatten(2, (grid, grid)), kernel, padding=kernel // 2).unflatten(1, (h_BTD.shape[2], kernel**2))
    return x_BDPT.permute(0, 3, 2, 1).flatten(2)


@pytest.mark.parametrize(("grid", "kernel"), [(5, 3), (4, 5), (2, 3), (1, 3), (2, 5), (4, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_neighbours_are_what_unfolding_writes_out(grid: int, kernel: int, dtype: torch.dtype, tolerance: float) -> None:
    """Predictions against the same regression on unfolded inputs in float64, in units of the deviation of y: on large grids and on those that are
    smaller than the kernel. float32: sums of 24 x 25 rows about the mean."""
    parts = {part: (images(24, grid, 3, part), images(24, grid, 4, 7 + part)) for part in (SOLVES, CHOOSES)}
    found, plain = Outputs({"a": 2, "b": 2}), Outputs({"a": 2, "b": 2})
    ridge, naive = Ridge(found, kernel), Ridge(plain)
    for part, (h, noise) in parts.items():
        y = noise + unfolded(h, kernel)[..., :1]
        for rows in torch.arange(24).split(10):
            ridge.add(h[rows].to(dtype), found.add({"a": y[rows, :, :2].to(dtype), "b": y[rows, :, 2:].to(dtype)}, part))
            naive.add(unfolded(h[rows].to(dtype).double(), kernel).flatten(0, 1), plain.add(y[rows].to(dtype).double().flatten(0, 1), part))
    x = unfolded(parts[CHOOSES][0], kernel)
    for name, reader in naive.solve().items():
        other = ridge.solve()[name]
        assert other.penalty == reader.penalty and other.r2 == pytest.approx(reader.r2, abs=tolerance)
        torch.testing.assert_close(other(x), reader(x), atol=tolerance, rtol=0)


def test_no_bit_of_an_output_depends_on_the_others() -> None:
    """Neither on which there are, nor on their order."""
    x, y = data()
    x32, y32 = x.astype(np.float32), {name: values.astype(np.float32) for name, values in y.items()}
    together = solve(x32, y32, 3, torch.float32)
    reverse = solve(x32, dict(reversed(y32.items())), 3, torch.float32)
    for name, values in y32.items():
        alone = solve(x32, {name: values}, 3, torch.float32)[name]
        for other in (together[name], reverse[name]):
            assert torch.equal(alone.weight_PC, other.weight_PC) and torch.equal(alone.bias_C, other.bias_C)
            assert (alone.penalty, alone.r2) == (other.penalty, other.r2)
