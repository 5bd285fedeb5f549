"""Every engine against gradients taken one by one with .backward()."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gsnr
from gsnr.engines import ENGINES
from tests.gsnr.problems import PROBLEMS, double, naive_gradients, split


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_moments_match_the_naive_reference(engine: str, name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, loss, data = PROBLEMS[name]()
    reference = naive_gradients(model.double(), loss, double(data))
    model = model.to(dtype)
    data = {k: v.to(dtype) if v.is_floating_point() else v for k, v in data.items()}
    for chunk, memory in ((1, 1 << 30), (4, 0), (100, 1 << 30)):  # memory 0: gradients are not kept, a second pass is made
        result = gsnr.measure(model, loss, split(data, 5), engine=engine, chunk=chunk, memory_bytes=memory)
        e = result["all"]
        np.testing.assert_allclose(e.q_n, (reference**2).sum(1), rtol=tolerance)
        total = reference.sum(0)
        scale = np.abs(total).max()
        flat = np.concatenate([result.moments.total(n).double().numpy().ravel() for n, _ in model.named_parameters()])
        np.testing.assert_allclose(flat, total, rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(e.r_n, reference @ total, rtol=0, atol=tolerance * np.abs(reference @ total).max())
        losses = loss(model, data).detach().double().numpy()
        np.testing.assert_allclose(result.losses, losses, rtol=tolerance)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_loop_and_vmap_agree_per_group(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, loss, data = PROBLEMS[name]()
    model = model.to(dtype)
    data = {k: v.to(dtype) if v.is_floating_point() else v for k, v in data.items()}
    results = [gsnr.measure(model, loss, [data], engine=engine, groups=lambda n: (n, n.split(".")[0])) for engine in ("loop", "vmap")]
    assert results[0].groups == results[1].groups
    for group in results[0].groups:
        a, b = (r[group] for r in results)
        scale = max(a.q_n.max(), 1e-30)
        np.testing.assert_allclose(a.q_n, b.q_n, rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(a.r_n, b.r_n, rtol=0, atol=tolerance * max(np.abs(a.r_n).max(), 1e-30))


@pytest.mark.parametrize("engine", ENGINES)
def test_leaves_nothing_behind(engine: str) -> None:
    model, loss, data = PROBLEMS["conv"]()
    model.train()
    model[1].eval()
    before, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    precision, grad = torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    gsnr.measure(model, loss, [data], engine=engine)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(before, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert (precision, grad) == (torch.get_float32_matmul_precision(), torch.is_grad_enabled())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("engine", ENGINES)
def test_works_under_no_grad(engine: str) -> None:
    model, loss, data = PROBLEMS["mlp"]()
    with torch.no_grad():
        assert gsnr.measure(model, loss, [data], engine=engine)["all"].noise > 0


def test_vmap_names_randomness() -> None:
    model, loss, data = PROBLEMS["mlp"]()
    noisy = torch.nn.Sequential(model, torch.nn.Dropout(0.5)).train()
    with pytest.raises(ValueError, match="random numbers"):
        gsnr.measure(noisy, loss, [data], engine="vmap")
