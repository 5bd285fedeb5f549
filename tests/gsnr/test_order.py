"""The same samples give the same result in any order, batch, chunk and rank: interval, tr(Cov^2), effective dimension and cautions too.

On scikit-learn's digits as they come (classes in rotation), sorted by class, and shuffled: alternating signs by place would give 1.8, 848 and 6
for an effective dimension. Float64, so what is left of the order is rounding, 1e-12 of sums; tr(Cov^2) is a difference of such: 1e-8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gsnr
from gsnr.engines import ENGINES
from gsnr.hashing import GOLDEN, key_of, scramble, signs_of, smallest
from gsnr.identity import Identify, content, numbers
from tests.gsnr.problems import digits, naive_gradients

ASKED = ("signal", "noise", "gsnr", "cov_sq", "effective_dimension", "detection_limit")


def ordered(data: dict[str, torch.Tensor], order: str) -> dict[str, torch.Tensor]:
    n = len(data["y"])
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    place = {"rotating": torch.arange(n), "sorted": data["y"].argsort(stable=True), "shuffled": shuffled}[order]
    return {key: x[place] for key, x in data.items()}


def cut(data: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    return [{key: x[i : i + size] for key, x in data.items()} for i in range(0, len(data["y"]), size)]


def same(a: gsnr.Estimate, b: gsnr.Estimate) -> None:
    for name in ASKED:
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-8), name
    assert a.ci() == pytest.approx(b.ci(), rel=1e-8)
    assert a.caution == b.caution


def gram_value(g: np.ndarray) -> float:
    """tr(Cov^2) by the U-statistic of the Gram matrix (Li and Chen 2012, Eq. 2.1): means over distinct samples of (g_i g_j)^2, g_i g_j g_j g_k
    and g_i g_j g_k g_l."""
    n, gram = len(g), g @ g.T
    np.fill_diagonal(gram, 0)
    squares, rows, total = (gram**2).sum(), (gram.sum(1) ** 2).sum(), gram.sum()
    two, three = squares / (n * (n - 1)), (rows - squares) / (n * (n - 1) * (n - 2))
    return float(two - 2 * three + (total**2 - 4 * rows + 2 * squares) / (n * (n - 1) * (n - 2) * (n - 3)))


@pytest.mark.parametrize("engine", ENGINES)
def test_any_order_and_batch(engine: str) -> None:
    model, loss, data = digits()
    numbered = data | {"number": torch.arange(len(data["y"]))}
    one = gsnr.measure(model, loss, [data], engine="ghost")["all"]
    by_number = gsnr.measure(model, loss, [numbered], engine="ghost", index="number")["all"]
    assert np.isfinite(one.cov_sq)
    assert one.cov_sq != pytest.approx(by_number.cov_sq, rel=1e-3)
    cases = [("sorted", 100, {"memory_bytes": 0}), ("shuffled", 32, {})]
    if engine == "ghost":  # the fast one
        cases += [("rotating", 32, {"chunk": 7}), ("shuffled", 32, {"memory_bytes": 0, "chunk": 13}), ("sorted", 32, {}), ("shuffled", 100, {})]
    for order, size, how in cases:
        same(gsnr.measure(model, loss, cut(ordered(data, order), size), engine=engine, **how)["all"], one)
    same(gsnr.measure(model, loss, cut(ordered(numbered, "sorted"), 100), engine="ghost", index=lambda b: b["number"])["all"], by_number)


def test_against_the_gram_matrix() -> None:
    """Over 64 choices of signs the mean of tr(Cov^2) is within three of its standard errors of the Gram matrix's value, and each choice spreads
    about it as `trace_cov_sq` says: sqrt(2 tr(Cov^4) / tr(Cov^2)^2 + 2 / 64), to a third (64 values of a skew law)."""
    model, loss, data = digits()
    g = naive_gradients(model, loss, data)
    truth = gram_value(g)
    data["number"] = torch.arange(len(data["y"]))
    found = [gsnr.measure(model, loss, [data], engine="ghost", index=lambda b, k=k: b["number"] + 1000 * k)["all"].cov_sq / truth for k in range(64)]
    assert abs(np.mean(found) - 1) < 3 * np.std(found, ddof=1) / 8
    spectrum = np.linalg.svd(g - g.mean(0), compute_uv=False) ** 2 / (len(g) - 1)
    spread = np.sqrt(2 * (spectrum**4).sum() / (spectrum**2).sum() ** 2 + 2 / 64)
    assert 2 / 3 < np.std(found, ddof=1) / spread < 3 / 2
    by_content = gsnr.measure(model, loss, [data])["all"].cov_sq / truth
    assert abs(by_content - 1) < 3 * spread


def test_merging_and_saving_keep_the_signs(tmp_path: Path) -> None:
    model, loss, data = digits()
    a, b = (gsnr.measure(model, loss, [part]) for part in cut(ordered(data, "sorted"), 256))
    a.save(tmp_path / "a.safetensors")
    merged = gsnr.Result.load(tmp_path / "a.safetensors").merge(b)
    together = gsnr.measure(model, loss, cut(data, 100))
    assert merged["all"].gsnr == pytest.approx(together["all"].gsnr, rel=1e-9)
    for half in ("plus", "minus"):
        for name, x in getattr(together.moments, half).items():
            torch.testing.assert_close(getattr(merged.moments, half)[name], x, rtol=1e-9, atol=1e-12)
    assert (merged.moments.signs > 0).sum() == (together.moments.signs > 0).sum()


def test_content_is_that_of_the_rows_bit_by_bit() -> None:
    """Against Python's integers; whatever the dtype, the length of a row, where a tensor begins in memory, and how many rows come at once."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    weights = [int(w) | 1 for w in key_of(np.arange(3))]
    sums = [sum(int(word) * w for word, w in zip(row, weights, strict=True)) % 2**64 for row in x.numpy().view(np.int32)]
    np.testing.assert_array_equal(content(x), scramble(np.array([(s + int(GOLDEN)) % 2**64 for s in sums], dtype=np.uint64)))
    for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.complex64):
        for shape in ((6, 3, 5), (6,), (6, 0), (6, 1)):
            y = (50 * torch.rand(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
            batch = {"x": x, "more": (y,), "name": "as it is"}
            parts = [{"x": x[i : i + 2], "more": (y[i : i + 2],), "name": "as it is"} for i in (0, 2, 4)]
            np.testing.assert_array_equal(content(batch), np.concatenate([content(part) for part in parts]))
            moved = torch.cat([y.flatten()[:1], y.flatten()])[1:].view(shape) if y.numel() else y
            np.testing.assert_array_equal(content(batch), content(batch | {"more": (moved,)}))
    signs = torch.ones(1, 4, dtype=torch.float64)
    assert content(signs) != content(-signs), "differences in the highest bit alone do not cancel"


def test_copies_are_told_apart() -> None:
    """Eight different samples, 16 times each: with one sign for all copies tr(Cov^2) would come out some 16 times too large."""
    g = np.repeat(np.random.default_rng(0).standard_normal((8, 20)), 16, axis=0)
    model = torch.nn.Linear(20, 1, bias=False).double()
    batch = {"x": torch.from_numpy(g)}
    cov_sq = gsnr.measure(model, lambda m, b: m(b["x"]).squeeze(-1), [batch])["all"].cov_sq
    assert 0.3 < cov_sq / gram_value(g) < 3
    identify, again = Identify(None, 1), Identify(None, 1)
    keys = np.concatenate([identify({"x": batch["x"][i : i + 40]}) for i in range(0, 128, 40)])
    assert len(set(keys.tolist())) == 128
    assert set(again({"x": batch["x"].flip(0)}).tolist()) == set(keys.tolist())


def test_draws_of_one_sample_share_one_identity() -> None:
    x = torch.arange(12.0).view(6, 2)
    assert len(content(x, draws=2)) == 3
    np.testing.assert_array_equal(numbers({"x": x, "i": torch.tensor([5, 5, 2, 2, 9, 9])}, "i", draws=2), key_of(np.array([5, 2, 9])))
    for index, message in (
        ("j", r"index 'j' is no entry of the batch \(entries: x\)"),
        (lambda b: [1, 1, 2, 2, 3, 4], r"the 2 rows \(draws\) of one sample must have one number, not 3, 4"),
        (lambda b: b["x"][:, 0], r"one whole number per row, shape \(6,\), not float32 \(6,\)"),
        (lambda b: [1, 2, 3], r"shape \(6,\), not int64 \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            numbers({"x": x}, index, draws=2)
    with pytest.raises(ValueError, match="entries: none, it is a Tensor"):
        numbers(x, "i")
    model, loss, data = digits()
    with pytest.raises(ValueError, match="index must be the name of a batch entry or a function"):
        gsnr.measure(model, loss, [data], index=3)


def test_signs_and_choice_are_fair() -> None:
    """Of 4096 numbered samples half have sign +, and so have half of those chosen: within four standard errors."""
    keys = key_of(np.arange(4096))
    chosen = keys <= smallest(keys, 1024)
    assert chosen.sum() == 1024
    assert abs(signs_of(keys).mean()) < 4 / 64
    assert abs(signs_of(keys[chosen]).mean()) < 4 / 32
    assert (keys[:5] <= smallest(keys[:5], 64)).all()
    assert len(smallest(keys[:0], 64)) == 0
