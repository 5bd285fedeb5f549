"""Two ranks are one measurement: uneven counts, a rank without data, an error on one rank. Gloo."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

import gsnr
from tests import forked
from tests.gsnr import ranks_worker
from tests.gsnr.problems import PROBLEMS, digits, double, other_loss


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("ranks")
    forked.ranks(2, [], out, partial(ranks_worker.main, out))
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("engine", ["loop", "vmap", "ghost", "none on rank 1"])
def test_two_ranks_agree_with_one_process(found: list[dict], engine: str) -> None:
    """To 1e-6 is asked; float64 sums in another order leave 1e-12."""
    model, loss, data = PROBLEMS["attention"]()
    alone = gsnr.measure(model.double(), loss, [double(data)], engine="loop", groups=lambda n: n.split(".")[0])
    assert found[0][engine] == found[1][engine]
    for group, values in found[0][engine].items():
        e = alone[group]
        assert values["n"] == e.n == 6
        for name in ("signal", "noise", "gsnr"):
            assert values[name] == pytest.approx(getattr(e, name), rel=1e-9, nan_ok=True), (group, name)
        np.testing.assert_allclose(values["q"], e.q_n, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(values["r"], e.r_n, rtol=1e-9, atol=1e-13)


def test_comparison_over_ranks(found: list[dict]) -> None:
    model, loss, data = PROBLEMS["attention"]()
    c = gsnr.compare(model.double(), loss, other_loss, [double(data)])["all"]
    for rank in found:
        assert rank["compare"]["inner"] == pytest.approx(c.inner, rel=1e-9)
        assert rank["compare"]["cosine"] == pytest.approx(c.cosine, rel=1e-9, nan_ok=True)
        np.testing.assert_allclose(rank["compare"]["x"], c.x_n, rtol=1e-9)


def test_signs_and_the_samples_that_meet_d_are_those_of_one_process(found: list[dict]) -> None:
    """Sorted by class, 300 samples on one rank and 212 on the other, against all in rotation."""
    model, loss, data = digits()
    e = gsnr.measure(model, loss, [data])["all"]
    for rank in found:
        assert rank["digits"]["cov_sq"] == pytest.approx(e.cov_sq, rel=1e-8)
        assert rank["digits"]["ci"] == pytest.approx(list(e.ci()), rel=1e-8)
        assert tuple(rank["digits"]["caution"]) == e.caution


def test_a_rank_can_measure_alone(found: list[dict]) -> None:
    assert found[0]["own"]["all"]["n"] == 4


def test_an_error_on_one_rank_reaches_all(found: list[dict]) -> None:
    assert found[1]["error"] == "gradients of 1 samples are not finite (samples 1)"
    assert found[0]["error"] == "rank 1: NotFinite: gradients of 1 samples are not finite (samples 1)"
