"""`gsnr.check`: passes where all is well, and finds wrong engines, refusals, coupled samples and random losses."""

from __future__ import annotations

import pytest
import torch

import gsnr
from gsnr.engines import ENGINES, vmap
from gsnr.gradients import Dense
from tests.gsnr.problems import PROBLEMS


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_engine_passes(name: str) -> None:
    model, loss, data = PROBLEMS[name]()
    found = gsnr.check(model, loss, data, groups=lambda n: n.split(".")[0])
    assert found.ok, str(found)
    assert {line.engine for line in found.lines} == set(ENGINES)
    assert "coupling: none" in str(found)
    assert all(line.error_q < 1e-5 for line in found.lines)


def test_finds_a_wrong_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, data = PROBLEMS["mlp"]()
    right = vmap.per_sample

    def wrong(model, loss, batch, selected, visit):
        return right(model, loss, batch, selected, lambda name, g: visit(name, Dense(g.dense().roll(1, 0) if name == "2.bias" else g.dense())))

    monkeypatch.setattr(vmap, "per_sample", wrong)
    found = gsnr.check(model, loss, data, groups=lambda n: n)
    assert not found.ok
    assert [(line.engine, line.group) for line in found.lines if not line.ok] == [("vmap", "all"), ("vmap", "2.bias")]
    assert "WRONG" in str(found)


def test_reports_refusals_and_randomness() -> None:
    _, loss, data = PROBLEMS["mlp"]()
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    model.register_parameter("extra", torch.nn.Parameter(torch.randn(3, 3)))
    found = gsnr.check(model, lambda m, b: loss(lambda x: m(x) @ m.extra, b), data)
    assert found.ok
    assert "refuses: parameter 'extra' is used by" in str(found)
    noisy = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Dropout(0.5), torch.nn.Linear(9, 3)).train()
    found = gsnr.check(noisy, loss, data)
    assert found.coupled is None
    assert "draws random numbers" in found.coupling


def test_finds_coupled_samples() -> None:
    model, loss, data = PROBLEMS["mlp"]()

    def contrastive(m, b):
        z = torch.nn.functional.normalize(m(b["x"]), dim=1)
        return -torch.log_softmax(z @ z.T, dim=1).diagonal()

    found = gsnr.check(model, contrastive, data)
    assert not found.ok
    assert found.coupled == tuple(range(13))
    assert "13 of 13 samples depend on the others" in str(found)
    for engine in (*ENGINES, "auto"):
        with pytest.raises(ValueError, match="samples are coupled"):
            gsnr.measure(model, contrastive, [data], engine=engine)
    with pytest.raises(ValueError, match="batch norm in train mode"):
        gsnr.check(torch.nn.Sequential(torch.nn.BatchNorm1d(5), model), loss, data)
