"""The monitor: training with it on is the same training, bit for bit; it measures when it should and says what it cost."""

from __future__ import annotations

import pytest
import torch

import gsnr
from tests.gsnr.problems import PROBLEMS


def train(monitored: bool, engine: str = "auto"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3)).train()
    _, loss, data = PROBLEMS["mlp"]()
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    monitor = gsnr.Monitor(model, {"loss": loss, "twice": lambda m, b: 2 * loss(m, b)}, [data], every=3, engine=engine)
    seen = {}
    for step in range(1, 11):
        noisy = {"x": data["x"] + torch.randn_like(data["x"]), "y": data["y"]}
        optimizer.zero_grad()
        loss(model, noisy).mean().backward()
        if monitored and (results := monitor(step)):  # between backward and step, where a stray .grad would be used
            seen[step] = results
        optimizer.step()
    return model, monitor, seen


@pytest.mark.parametrize("engine", ["loop", "vmap", "ghost"])
def test_training_is_bit_identical_with_it_on(engine: str) -> None:
    (plain, _, _), (watched, monitor, seen) = train(False), train(True, engine)
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert list(seen) == [3, 6, 9]
    assert seen[9]["twice"]["all"].gsnr == pytest.approx(seen[9]["loss"]["all"].gsnr, rel=1e-4)
    assert seen[3]["loss"]["all"].gsnr != seen[9]["loss"]["all"].gsnr
    assert all(module.training for module in watched.modules())
    assert "3 measurements" in monitor.cost
    assert 0 < monitor.share < 1


def test_errors() -> None:
    model, loss, data = PROBLEMS["mlp"]()
    with pytest.raises(ValueError, match="every = 0"):
        gsnr.Monitor(model, {"loss": loss}, [data], every=0)
    with pytest.raises(ValueError, match="at least one loss"):
        gsnr.Monitor(model, {}, [data], every=1)
    assert gsnr.Monitor(model, {"loss": loss}, [data], every=5).cost == "no measurement yet"
