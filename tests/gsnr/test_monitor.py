"""The monitor: training with it on is the same training, bit for bit; it measures when it should and says what it cost."""

from __future__ import annotations

import pytest
import torch

import gsnr
from gsnr.balance import balance
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


def two_losses(monitored: bool):
    torch.manual_seed(0)
    model, loss, data = PROBLEMS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    second = lambda m, b: m(b["x"]).square().mean(1)
    bins = {name: [data | {"x": scale * data["x"]}] for name, scale in (("low", 0.5), ("high", 2.0))}
    weight = lambda step, own: 0.1 * step if own == "low" else 2.0
    monitor = gsnr.Monitor(model, {"loss": loss, "align": second}, bins, every=2, compare=[("align", "loss")], weight=weight)
    seen = {}
    for step in range(1, 5):
        optimizer.zero_grad()
        (loss(model, data) + second(model, data)).mean().backward()
        if monitored and (results := monitor(step)):
            seen[step] = results
        optimizer.step()
    return model, monitor, seen


def test_pairs_in_bins() -> None:
    """The same as measured by hand, bit-identical training, and one line that says so."""
    (plain, _, _), (watched, monitor, seen) = two_losses(False), two_losses(True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert list(seen[4]) == ["align/low", "loss/low", "align/high", "loss/high"] and set(monitor.compared) == {"align:loss/low", "align:loss/high"}
    model, fresh, _ = two_losses(False)
    fresh(4)
    again = [gsnr.compare(model, fresh.losses["align"], fresh.losses["loss"], own)["all"] for own in fresh.bins.values()]
    assert repr(fresh.balances["align:loss"]) == repr(balance(again, [0.4, 2.0])), "NaN is NaN"
    assert fresh.scalars()["rho/align:loss"] == fresh.balances["align:loss"].rho and "gsnr/align/low_high" in fresh.scalars()
    assert fresh.verdict().startswith("step 4: loss ") and "align:loss" in fresh.verdict() and "1 measurements" in fresh.verdict()
    assert two_losses(False)[1].verdict() == "no measurement yet"
    assert not seen[4]["loss/low"].moments.plus and seen[4]["loss/low"].loss > 0


def test_common_part_and_single_loss() -> None:
    model, loss, data = PROBLEMS["mlp"]()
    losses = {"a": lambda m, b, y: y.square().mean(1), "b": lambda m, b, y: torch.nn.functional.cross_entropy(y, b["y"], reduction="none")}
    monitor = gsnr.Monitor(model, losses, [data], every=1, common=lambda m, b: m(b["x"]))
    assert monitor(1)["b"]["all"].gsnr == pytest.approx(gsnr.measure(model, loss, [data])["all"].gsnr, rel=1e-5)
    assert "a " in monitor.verdict() and monitor.compared == {}


def test_alerts() -> None:
    model, loss, data = PROBLEMS["mlp"]()
    torch.manual_seed(0)
    flat = lambda m, b: loss(m, b) * torch.sign(torch.arange(len(b["y"])) % 2 - 0.5)  # signs alternate: no signal
    monitor = gsnr.Monitor(model, {"flat": flat}, [data], every=1)
    assert [any("below detection in the last 3" in x for x in monitor.alerts) for step in (1, 2, 3) if monitor(step)] == [False, False, True]
    heavy = data | {"x": data["x"].clone()}
    heavy["x"][3] *= 1e3
    monitor = gsnr.Monitor(model, {"heavy": loss}, [heavy], every=1)
    monitor(1)
    assert any("one sample holds" in x for x in monitor.alerts)
    opposed = gsnr.Monitor(model, {"a": loss, "b": lambda m, b: -loss(m, b)}, [data | {"y": 0 * data["y"]}], every=1, compare=[("b", "a")])
    opposed(1)
    assert any("below -0.5" in x for x in opposed.alerts) and "balanced" in opposed.verdict() and "alerts" in opposed.verdict()


def test_what_is_not_finite_is_named_and_ends_nothing() -> None:
    model, loss, data = PROBLEMS["mlp"]()
    overflow = lambda m, b: (loss(m, b) * 1e38).square()
    monitor = gsnr.Monitor(model, {"ok": loss, "overflow": overflow}, [data], every=1)
    assert set(monitor(1)) == {"ok"}
    assert any("overflow: gradients of" in x and "first in the gradient of 2.bias" in x for x in monitor.alerts)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    paired = gsnr.Monitor(model, {"ok": loss, "twice": lambda m, b: 2 * loss(m, b)}, [data], every=1, compare=[("twice", "ok")])
    assert paired(1) == {} and "first in the output of 2" in paired.alerts[0]
    loss(model, data).sum().backward()
    paired(2)
    assert "the training's gradient of 2.bias is not finite" in paired.alerts[0]
    with pytest.raises(ValueError, match="compare: there is no loss 'other'; choose from ok"):
        gsnr.Monitor(model, {"ok": loss}, [data], every=1, compare=[("ok", "other")])
