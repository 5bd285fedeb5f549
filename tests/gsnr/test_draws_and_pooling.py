"""Several draws per sample, pooling over bins, saved sums: against analysis of variance and plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gsnr
from gsnr.engines import ENGINES
from tests.gsnr.problems import PROBLEMS, double, naive_gradients, split


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["conv", "attention", "mlp"])
def test_draws_are_averaged_per_sample(engine: str, name: str) -> None:
    """n counts images: statistics are those of the images' mean gradients, and V splits as one-way analysis of variance does."""
    model, loss, data = PROBLEMS[name]()
    model, data = model.double(), double(data)
    data = {k: v[:6] for k, v in data.items()}  # three images of two draws
    each = naive_gradients(model, loss, data)
    means = each.reshape(3, 2, -1).mean(1)
    for batches, memory in (([data], 1 << 30), (split(data, 4), 0)):
        result = gsnr.measure(model, loss, batches, engine=engine, draws=2, memory_bytes=memory)
        e = result["all"]
        assert (e.n, e.draws, len(result.losses)) == (3, 2, 3)
        np.testing.assert_allclose(e.q_n, (means**2).sum(1), rtol=1e-10)
        np.testing.assert_allclose(e.r_n, means @ means.sum(0), rtol=1e-9)
        within = ((each.reshape(3, 2, -1) - means[:, None]) ** 2).sum() / (3 * (2 - 1))
        assert e.noise_within == pytest.approx(within, rel=1e-9)
        assert e.noise_between + e.noise_within / 2 == pytest.approx(e.noise, rel=1e-9)
    single = gsnr.measure(model, loss, [data], engine=engine)["all"]
    assert np.isnan(single.noise_within)
    with pytest.raises(ValueError, match="no multiple of draws = 4"):
        gsnr.measure(model, loss, [data], engine=engine, draws=4)
    for draws in (0, True):
        with pytest.raises(ValueError, match="draws must be a whole number of at least 1"):
            gsnr.measure(model, loss, [data], engine=engine, draws=draws)


def test_draws_split_the_noise_without_bias() -> None:
    """loss = w . (x_i + e_ik): gradient x_i + e_ik with variances 4 between and 1 within per coordinate; 300 repeats, three standard errors."""
    model = torch.nn.Linear(5, 1, bias=False).double()
    rng = np.random.default_rng(0)
    between, within = [], []
    for _ in range(300):
        g = 2 * rng.standard_normal((20, 1, 5)) + rng.standard_normal((20, 3, 5))
        e = gsnr.measure(model, lambda m, b: m(b["x"]).squeeze(-1), [{"x": torch.from_numpy(g.reshape(60, 5))}], draws=3, interval=False)["all"]
        between.append(e.noise_between)
        within.append(e.noise_within)
    for values, truth in ((between, 20.0), (within, 5.0)):
        assert abs(np.mean(values) - truth) < 3 * np.std(values) / np.sqrt(300)


def bins(rng: np.random.Generator, n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Per-bin gradients of the same n images: an image's gradients in different bins share a component."""
    shared = rng.standard_normal((n, 6))
    means = np.array([1.0, -0.5, 0.2])
    return [m + shared * scale + 0.5 * rng.standard_normal((n, 6)) for m, scale in zip(means, (1.0, 2.0, 0.5), strict=True)], means


def test_pooling_is_unbiased_though_bins_share_images() -> None:
    """Truth: U = ||sum w mu||^2, V = sum w tr Cov_b + sum w ||mu_b - mu||^2. 400 repeats, three standard errors."""
    weights = [0.5, 0.3, 0.2]
    model = torch.nn.Linear(6, 1, bias=False).double()
    rng = np.random.default_rng(0)
    found = []
    for k in range(400):
        gradients, means = bins(rng, 10)
        image = lambda b, k=k: 20 * k + torch.arange(len(b["x"]))
        results = (
            gsnr.measure(model, lambda m, b: m(b["x"]).squeeze(-1), [{"x": torch.from_numpy(g)}], interval=False, engine="loop", index=image)
            for g in gradients
        )
        pooled = gsnr.pool(results, weights)["all"]
        found.append((pooled.signal, pooled.noise, pooled.between))
    mu = means @ weights
    spread = 6 * float(np.dot(weights, (means - mu) ** 2))
    noise = 6 * float(np.dot(weights, np.array([1.0, 4.0, 0.25]) + 0.25)) + spread
    for values, truth in zip(np.array(found).T, (6 * mu**2, noise, spread), strict=True):
        assert abs(values.mean() - truth) < 3 * values.std() / 20, truth


def test_pooling_one_bin_is_that_bin_and_groups_add_up() -> None:
    model, loss, data = PROBLEMS["mlp"]()
    model, data = model.double(), double(data)
    result = gsnr.measure(model, loss, [data], groups=lambda n: n.split(".")[0])
    alone = gsnr.pool([result], [1.0])
    assert alone["all"].signal == pytest.approx(result["all"].signal, rel=1e-9)
    assert alone["all"].gsnr == pytest.approx(result["all"].gsnr, rel=1e-9)
    assert alone["all"].between == pytest.approx(0.0, abs=1e-12)
    both = gsnr.pool([result, result], [0.25, 0.75])
    assert both["0"].signal + both["2"].signal == pytest.approx(both["all"].signal, rel=1e-9)
    for results, weights, message in (
        ([result], [0.5], "sum to 1"),
        ([result], [0.5, 0.5], "1 results for 2 weights"),
        ([result, result], [1.0], "more results"),
        ([result, gsnr.measure(model, loss, [data])], [0.5, 0.5], "do not pool"),
    ):
        with pytest.raises(ValueError, match=message):
            gsnr.pool(results, weights)


def test_saved_sums_merge_as_in_memory(tmp_path: Path) -> None:
    model, loss, data = PROBLEMS["conv"]()
    model, data = model.double(), double(data)
    parts = [gsnr.measure(model, loss, [part], groups=lambda n: n.split(".")[0]) for part in split(data, 4)]
    for k, part in enumerate(parts):
        part.save(tmp_path / "sums" / f"{k}.safetensors")
    loaded = [gsnr.Result.load(tmp_path / "sums" / f"{k}.safetensors") for k in range(2)]
    merged, together = loaded[0].merge(loaded[1]), gsnr.measure(model, loss, [data], groups=lambda n: n.split(".")[0])
    assert merged.groups == together.groups
    for group in together.groups:
        assert merged[group].signal == pytest.approx(together[group].signal, rel=1e-9)
        assert merged[group].noise == pytest.approx(together[group].noise, rel=1e-9)
    np.testing.assert_array_equal(loaded[0].losses, parts[0].losses)
    assert merged.engine == "ghost"
    (tmp_path / "damaged").write_bytes(b"not safetensors at all")
    torch.save({}, tmp_path / "foreign.pt")
    for name, message in (("missing", "no such file"), ("damaged", "not a readable"), ("foreign.pt", "not a readable")):
        with pytest.raises(ValueError, match=rf"{name}: {message}"):
            gsnr.Result.load(tmp_path / name)
    draws = gsnr.measure(model, loss, [{k: v[:8] for k, v in data.items()}], draws=2, groups=lambda n: n.split(".")[0])
    with pytest.raises(ValueError, match="do not merge"):
        draws.merge(loaded[0])
