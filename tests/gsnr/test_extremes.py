"""Where float32 or the model's own habits would mislead: hardly any noise, gradients out of range, buffers that change, odd parameters."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gsnr
from tests.gsnr.naive import jackknife_interval, leave_one_out, ratio
from tests.gsnr.problems import naive_gradients

ENGINES = ("ghost", "vmap", "loop")


class Every(nn.Module):
    """Linear (tied to the embedding: a sum), convolution, norm, embedding, a plain scale: every form of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.norm = nn.Embedding(6, 8), nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.scale = nn.Parameter(torch.ones(1, 8))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        h = self.norm(self.conv(batch["x"])).tanh().mean((2, 3)) * self.scale + self.table(batch["i"]).mean(1)
        return F.linear(h, self.table.weight).square().sum(1)


def every(n: int = 24) -> tuple[Every, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Every(), {"x": torch.randn(n, 2, 4, 4), "i": torch.randint(6, (n, 3)), "w": torch.rand(n) + 0.5}


def quietly(*args, **kwargs) -> gsnr.results.Result:
    with pytest.warns(UserWarning, match="measured again in float64"):
        return gsnr.measure(*args, **kwargs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1e-25, 1e21])
def test_gradients_whose_squares_leave_float32(engine: str, size: float) -> None:
    """The same ratio and interval as of gradients of size one, by their definitions; float32 made them NaN, or an error, or zero.
    Tolerance: that of the float32 gradients themselves."""
    model, data = every()
    g_NP = naive_gradients(model, lambda m, b: m(b) * b["w"], data)
    expected = ratio(g_NP)
    found = quietly(model, lambda m, b: m(b) * b["w"] * size, [data], engine)["all"]
    assert found.gsnr == pytest.approx(expected, rel=1e-4)
    assert found.noise == pytest.approx(size**2 * g_NP.var(axis=0, ddof=1).sum(), rel=1e-4)
    plain = gsnr.measure(model, lambda m, b: m(b) * b["w"], [data], engine)["all"]
    assert found.ci() == pytest.approx(plain.ci(), rel=1e-3)
    assert found.effective_dimension == pytest.approx(plain.effective_dimension, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gsnr_of_one", [1e5, 1e8])
def test_hardly_any_noise(engine: str, gsnr_of_one: float) -> None:
    """A linear model, whose gradient is its input, so known to the last bit; float32 sums gave -6e7 for 1e8, with a tight interval."""
    x = torch.randn(24, 40, generator=torch.Generator().manual_seed(0)) + gsnr_of_one**0.5
    model = nn.Linear(40, 1, bias=False)
    found = quietly(model, lambda m, b: m(b["x"])[:, 0], [{"x": x[:16]}, {"x": x[16:]}], engine)["all"]
    g_NP = x.double().numpy()
    assert found.gsnr == pytest.approx(ratio(g_NP), rel=1e-6)
    assert found.gsnr == pytest.approx(gsnr_of_one, rel=0.2)
    assert found.deleted_gsnr == pytest.approx(leave_one_out(g_NP), rel=1e-6)
    low, high = jackknife_interval(found.gsnr, found.deleted_gsnr)
    assert high > found.gsnr > low > 0.5 * gsnr_of_one


def test_hardly_any_noise_with_draws_and_two_losses() -> None:
    """Pooled draws, and the products of two losses, are taken in float64 too; chunks that do not fit are computed again alike."""
    x = torch.randn(48, 40, generator=torch.Generator().manual_seed(0)) + 1e4
    model, batches = nn.Linear(40, 1, bias=False), [{"x": x}]
    a, b = lambda m, b: m(b["x"])[:, 0], lambda m, b: m(b["x"].flip(1))[:, 0]
    pooled = x.double().view(24, 2, 40).mean(1).numpy()
    with pytest.warns(UserWarning, match="measured again in float64"):
        kept = gsnr.compare(model, a, b, batches, draws=2)["all"]
        again = gsnr.compare(model, a, b, batches, draws=2, memory_bytes=0)["all"]
    assert kept.a.gsnr == pytest.approx(ratio(pooled), rel=1e-5)
    assert kept.cosine == pytest.approx(1, abs=1e-4)
    assert (again.a.gsnr, again.cosine, *again.cosine_ci()) == pytest.approx((kept.a.gsnr, kept.cosine, *kept.cosine_ci()), rel=1e-9)


def test_noise_within_the_rounding_of_gradients_is_a_caution() -> None:
    x = torch.randn(24, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e7
    loss = lambda m, b: m(b["x"])[:, 0]
    assert any("rounding of float32" in c for c in gsnr.measure(nn.Linear(40, 1, bias=False).double(), loss, [{"x": x}])["all"].caution)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # float64 from the start: nothing is measured twice
        assert not any("rounding" in c for c in gsnr.measure(nn.Linear(40, 1, bias=False).double(), loss, [{"x": x - 1e7}])["all"].caution)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_that_are_not_finite_are_still_refused(engine: str) -> None:
    x = torch.ones(6, 5)
    x[4, 0] = float("inf")
    with pytest.raises(ValueError, match=r"gradients of 1 samples are not finite \(samples 4\)"):
        gsnr.measure(nn.Linear(5, 1), lambda m, b: m(b["x"])[:, 0].clamp(max=10) * 0 + m(b["x"])[:, 0], [{"x": x}], engine)


class Counting(nn.Module):
    """Counts its forwards in a buffer; the output depends on the count where `uses` says so."""

    def __init__(self, uses: bool, in_place: bool) -> None:
        super().__init__()
        self.layer, self.uses, self.in_place = nn.Linear(5, 1), uses, in_place
        self.register_buffer("fixed", torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen.add_(1) if self.in_place else self.seen + 1
        return self.layer(x) * (self.seen if self.uses else self.fixed)


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_forward_that_changes_what_it_depends_on(engine: str, in_place: bool) -> None:
    """Refused by the buffer's name (vmap cannot run a change in place at all); a mere counter is fine, and is put back."""
    torch.manual_seed(0)
    batches = [{"x": torch.randn(4, 5)} for _ in range(3)]
    loss = lambda m, b: m(b["x"])[:, 0]
    with pytest.raises(ValueError, match=r"changes buffer 'seen', and the loss depends on it|vmap.*changes a buffer in place"):
        gsnr.measure(Counting(True, in_place), loss, batches, engine)
    model = Counting(False, in_place)
    if not (engine == "vmap" and in_place):
        result = gsnr.measure(model, loss, batches, engine)
        assert result["all"].gsnr == pytest.approx(ratio(naive_gradients(model.layer, lambda m, b: m(b["x"])[:, 0], flat(batches))), rel=1e-5)


def flat(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {"x": torch.cat([batch["x"] for batch in batches])}


def test_a_buffer_that_grows_is_put_back() -> None:
    """A table of positions that is made longer when needed: the loss does not depend on its length."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 1)
            self.register_buffer("positions", torch.arange(2.0))

        def forward(self, x: Tensor) -> Tensor:
            self.positions = torch.arange(5.0)
            return self.layer(x + self.positions[:5])

    model = Growing()
    assert gsnr.measure(model, lambda m, b: m(b["x"])[:, 0], [{"x": torch.randn(8, 5)}])["all"].n == 8
    assert torch.equal(model.positions, torch.arange(2.0))


@pytest.mark.parametrize("engine", ["ghost", "loop", "auto"])
def test_sparse_embeddings_are_measured(engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Embedding(10, 4, sparse=True)
    data = {"i": torch.randint(10, (24, 3))}
    loss = lambda m, b: m(b["i"]).sum((1, 2)) ** 2
    g_NP = np.stack([torch.autograd.grad(loss(model, {"i": row[None]}).sum(), model.weight)[0].to_dense().flatten() for row in data["i"]])
    assert gsnr.measure(model, loss, [data], engine)["all"].gsnr == pytest.approx(ratio(g_NP.astype(np.float64)), rel=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_cannot_be_measured_is_one_line() -> None:
    loss = lambda m, b: m(b["i"]).sum((1, 2)) ** 2
    with pytest.raises(ValueError, match=r"engine 'vmap': a gradient is sparse, as of nn.Embedding"):
        gsnr.measure(nn.Embedding(10, 4, sparse=True), loss, [{"i": torch.randint(10, (6, 3))}], "vmap")
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        model = nn.ParameterDict({"w": nn.Parameter(torch.ones(5).to(dtype)), "v": nn.Parameter(torch.ones(5))})
        with pytest.raises(ValueError, match=f"parameter 'w' is {dtype}.*leave it out with parameters="):
            gsnr.measure(model, lambda m, b: b["x"] @ m["v"], [{"x": torch.randn(6, 5)}])
        assert gsnr.measure(model, lambda m, b: (b["x"] * m["v"]).sum(1), [{"x": torch.randn(6, 5)}], parameters="v")["all"].n == 6
