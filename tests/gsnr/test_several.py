"""Several losses compared with one: the same as one at a time, with the common part run once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gsnr
from gsnr.engines import ENGINES
from tests.gsnr.problems import double, naive_gradients, split

COLUMNS = ("x_n", "a_sum_b_n", "b_sum_a_n")


class Backbone(nn.Module):
    """Two taps, a head on each, and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.out = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.heads = nn.ModuleDict({"near": nn.Linear(7, 2), "far": nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 2))})
        self.calls: Counter[str] = Counter()

    def common(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        self.calls["common"] += 1
        low = self.low(batch["x"]).tanh()
        high = self.high(low).tanh()
        return low, high, self.out(high)


def problem() -> tuple[Backbone, dict[str, Tensor]]:
    torch.manual_seed(0)
    data = {"x": torch.randn(12, 5), "v": torch.randn(12, 3), "near": torch.randn(12, 2), "far": torch.randn(12, 2)}
    return Backbone().double(), double(data)


def common(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    assert isinstance(model, Backbone)
    return model.common(batch)


def denoising(model: nn.Module, batch: dict[str, Tensor], taps: Any) -> Tensor:
    return (taps[2] - batch["v"]).square().mean(1)


def near(model: nn.Module, batch: dict[str, Tensor], taps: Any) -> Tensor:
    return (model.heads["near"](taps[0]) - batch["near"]).square().mean(1)


def far(model: nn.Module, batch: dict[str, Tensor], taps: Any) -> Tensor:
    return (model.heads["far"](taps[1]) - batch["far"]).abs().mean(1)


LOSSES = {"near": near, "far": far}
GROUPS = {"trunk": ["low.*", "high.*"], "heads": "heads.*"}


def alone(loss: Any) -> Any:
    return lambda model, batch: loss(model, batch, model.common(batch))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"memory_bytes": 0}, {"chunk": 3}, {"draws": 2}, {"memory_bytes": 3000}], ids=str)
def test_as_one_at_a_time(engine: str, options: dict[str, int]) -> None:
    model, data = problem()
    batches = split(data, 4)
    together = gsnr.compare(model, LOSSES, denoising, batches, engine=engine, groups=GROUPS, common=common, **options)
    assert list(together) == list(LOSSES)
    for name, loss in LOSSES.items():
        one = gsnr.compare(model, alone(loss), alone(denoising), batches, engine=engine, groups=GROUPS, **options)
        for group in one.groups:
            got, wanted = together[name][group], one[group]
            for column in COLUMNS:
                np.testing.assert_allclose(getattr(got, column), getattr(wanted, column), rtol=1e-9, atol=1e-12)
            for mine, its in ((got.a, wanted.a), (got.b, wanted.b)):
                np.testing.assert_allclose(mine.q_n, its.q_n, rtol=1e-9)
                np.testing.assert_allclose(mine.r_n, its.r_n, rtol=1e-9, atol=1e-12)
                assert mine.cov_sq == pytest.approx(its.cov_sq, rel=1e-9, nan_ok=True)
            assert got.sum_ab == pytest.approx(wanted.sum_ab, rel=1e-9, abs=1e-12)


def test_against_whole_gradients() -> None:
    model, data = problem()
    b = naive_gradients(model, alone(denoising), data)
    found = gsnr.compare(model, LOSSES, denoising, split(data, 5), engine="ghost", common=common)
    for name, loss in LOSSES.items():
        gram = naive_gradients(model, alone(loss), data) @ b.T
        np.testing.assert_allclose(found[name]["all"].x_n, np.diag(gram), rtol=1e-9)
        np.testing.assert_allclose(found[name]["all"].a_sum_b_n, gram.sum(1), rtol=1e-9)
        np.testing.assert_allclose(found[name]["all"].b_sum_a_n, gram.sum(0), rtol=1e-9)


def test_the_common_part_is_run_once_a_batch() -> None:
    model, data = problem()
    batches = split(data, 4)  # two, both checked by one sample alone for each loss
    gsnr.compare(model, LOSSES, denoising, batches, engine="ghost", common=common)
    assert model.calls["common"] == 2 + 2 * 3


def test_activation_checkpointing() -> None:
    from gsnr.train.models.sit import SiT

    torch.manual_seed(0)
    model = SiT(input_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=3, num_heads=2, num_classes=3).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    data = double({"x": torch.randn(6, 2, 4, 4), "t": torch.rand(6), "y": torch.randint(3, (6,)), "v": torch.randn(6, 2, 4, 4)})
    taps = lambda m, b: m.forward_with_taps(b["x"], b["t"], b["y"], taps=(1, 2))
    losses = {str(k): (lambda m, b, out, k=k: out[1][k].square().flatten(1).mean(1)) for k in (1, 2)}
    velocity = lambda m, b, out: (out[0] - b["v"]).square().flatten(1).mean(1)
    plain, again = ({}, {})
    for model.checkpointing, found in ((False, plain), (True, again)):
        found |= gsnr.compare(model, losses, velocity, [data], engine="ghost", parameters="blocks.*", common=taps)
    for name in losses:
        assert again[name]["all"].cosine == pytest.approx(plain[name]["all"].cosine, rel=1e-9)
        np.testing.assert_allclose(again[name]["all"].x_n, plain[name]["all"].x_n, rtol=1e-9)


def test_sums_that_nothing_reaches_take_no_memory() -> None:
    model, data = problem()
    found = gsnr.compare(model, LOSSES, denoising, [data], common=common)
    moments = found["near"].a.moments
    assert moments.plus["heads.far.0.weight"].untyped_storage().nbytes() == 8
    assert moments.reached("heads.near.weight") and not moments.reached("high.weight")
    own = moments.named({"heads.near.weight": "head", "low.weight": "low"})
    assert own.plus["head"] is moments.plus["heads.near.weight"] and set(own.labels) == {"head", "low"}


def test_refusals() -> None:
    model, data = problem()
    with pytest.raises(ValueError, match="loss_a: no loss to compare"):
        gsnr.compare(model, {}, denoising, [data], common=common)
    with pytest.raises(ValueError, match="common must be a function, not int"):
        gsnr.compare(model, LOSSES, denoising, [data], common=3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"one value per sample, shape \(12,\)"):
        gsnr.compare(model, {"bad": lambda m, b, taps: taps[0]}, denoising, [data], common=common)
