"""Precision of the passes, and chunks that a device has no memory for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gsnr
from gsnr import running
from gsnr.engines import ghost
from gsnr.probes.common.options import GradientOptions
from gsnr.surroundings import ALSO, PRECISIONS
from tests.gsnr.problems import attention_problem, naive_gradients, split


def test_bfloat16_is_autocast_and_statistics_stay_float32() -> None:
    model, loss, data = attention_problem()
    exact = naive_gradients(model, loss, data)
    result = gsnr.measure(model, loss, split(data, 3), engine="ghost", precision="bfloat16")
    q = result["all"].q_n
    assert np.abs(q / (exact**2).sum(1) - 1).max() < 3e-2  # bfloat16 has 8 bits
    assert np.abs(q / (exact**2).sum(1) - 1).max() > 1e-6  # and float32 was not taken for it
    assert all(s.dtype == torch.float32 for s in result.moments.plus.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_caller = gsnr.measure(model, loss, split(data, 3), engine="ghost")
    np.testing.assert_allclose(q, by_caller["all"].q_n, rtol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_callers_precision_is_put_back(precision: str) -> None:
    model, loss, data = attention_problem()
    seen = []

    def noted(m, b):  # type: ignore[no-untyped-def]
        seen.append(torch.get_float32_matmul_precision())
        return loss(m, b)

    before = torch.get_float32_matmul_precision()
    gsnr.compare(model, noted, loss, split(data, 3), engine="loop", precision=precision)
    assert torch.get_float32_matmul_precision() == before
    assert not torch.is_autocast_enabled("cpu")
    assert set(seen) == {"high" if precision == "tf32" else "highest"}


def test_short_names() -> None:
    model, loss, data = attention_problem()
    for word, meant in (("bf16", "bfloat16"), ("fp32", "float32")):
        one, other = (gsnr.measure(model, loss, split(data, 3), precision=name)["all"] for name in (word, meant))
        np.testing.assert_array_equal(one.q_n, other.q_n)


def test_unknown_precision() -> None:
    model, loss, data = attention_problem()
    with pytest.raises(ValueError, match="precision 'fp16' does not exist; choose from float32, tf32, bfloat16"):
        gsnr.measure(model, loss, [data], precision="fp16")
    field = GradientOptions.__dataclass_fields__["precision"]
    assert field.metadata["choices"] == PRECISIONS and field.metadata["also"] == ALSO


def _small_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that holds `most` samples at once; the sizes that were tried."""
    tried: list[int] = []
    whole = ghost.per_sample

    def per_sample(model, loss, batch, selected, visit):  # type: ignore[no-untyped-def]
        tried.append(len(batch["x"]))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, loss, batch, selected, visit)

    monkeypatch.setattr(ghost, "per_sample", per_sample)
    monkeypatch.setattr(running, "find", lambda name: per_sample)
    return tried


def test_chunks_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, data = attention_problem()
    plain = gsnr.measure(model, loss, [data], engine="ghost")["all"]
    tried = _small_memory(monkeypatch, 1)
    with pytest.warns(UserWarning, match="samples at once are too many for the memory of cpu") as said:
        result = gsnr.measure(model, loss, [data], engine="ghost")["all"]
    assert str(said[-1].message).endswith("with 1 now (chunk=1)")
    assert tried[:3] == [6, 3, 1]
    np.testing.assert_allclose(result.q_n, plain.q_n, rtol=1e-5)
    np.testing.assert_allclose(result.gsnr, plain.gsnr, rtol=1e-4)


def test_one_sample_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, data = attention_problem()
    _small_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="too many"):
        gsnr.measure(model, loss, [data], engine="ghost")
