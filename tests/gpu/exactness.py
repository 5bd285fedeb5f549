"""Per-sample gradients on the device against a loop of plain backward passes in float64 that shares no code with the library."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gsnr
from gsnr.benchmarks import subjects
from gsnr.train.models.sit import SiT
from tests.gpu.clock import DEVICE

TITLE = "Exactness: greatest error against a float64 loop (square norm of g_i and of the sum S: relative; g_i . S: share of their norms' product)"
LIMIT_S = 120
Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
ENGINES = ("ghost", "vmap", "loop")


def velocity_loss(model: nn.Module, b: Batch) -> Tensor:
    return (model(b["x"], b["t"], b["y"]).float() - b["v"]).square().flatten(1).mean(1)


def sit(toy: bool) -> tuple[SiT, list[Batch]]:
    """A SiT whose gates and output are not 0, and two batches."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "depth": 2, "num_heads": 2, "input_size": 8} if toy else {"hidden_size": 384, "depth": 6, "num_heads": 6}
    model = SiT(**shape).eval()
    for name, p in model.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            nn.init.normal_(p, std=0.02)
    side, n = model.config["input_size"], 4 if toy else 8
    return model.to(DEVICE), [batch(n, side) for _ in range(2)]


def batch(n: int, side: int) -> Batch:
    made = {"x": torch.randn(n, 4, side, side), "t": torch.rand(n), "y": torch.randint(1000, (n,)), "v": torch.randn(n, 4, side, side)}
    return {key: x.to(DEVICE) for key, x in made.items()}


Truth = tuple[np.ndarray, np.ndarray, float]  # |g_i|^2, g_i . S, |S|^2


def truth(model: nn.Module, loss: Loss, batches: list[Batch], draws: int = 1) -> Truth:
    exact = copy.deepcopy(model).double()
    if isinstance(exact, SiT):
        exact.checkpointing = False
    each = []
    for b in batches:
        b = {key: x.double() if x.is_floating_point() else x for key, x in b.items()}
        for i in range(0, len(next(iter(b.values()))), draws):
            exact.zero_grad()
            loss(exact, {key: x[i : i + draws] for key, x in b.items()}).mean().backward()
            each.append(torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None]))
    g = torch.stack(each)
    s = g.sum(0)
    return g.square().sum(1).cpu().numpy(), (g @ s).cpu().numpy(), float(s @ s)


def row(what: str, engine: str, model: nn.Module, loss: Loss, batches: list[Batch], true: Truth, **options: Any) -> dict[str, Any]:
    """One measurement and its errors, or why there is none."""
    said = {"what": what, "engine": engine}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = gsnr.measure(model, loss, batches, engine=engine, **options)
        except (ValueError, RuntimeError) as error:
            return said | {"note": f"refuses: {str(error).splitlines()[0]}"}
    e, (q, r, s) = result["all"], true
    errors = {"square norm": float(np.abs(e.q_n / q - 1).max()), "of the sum": abs(e.sum_sq / s - 1)}
    if e.r_n is not None:
        errors["with the sum"] = float((np.abs(e.r_n - r) / np.sqrt(q * s)).max())
    return said | errors | {"note": f"took {result.engine}" if engine == "auto" else ""}


@contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def of_sit(toy: bool) -> Iterator[dict[str, Any]]:
    model, batches = sit(toy)
    true = truth(model, velocity_loss, batches)

    def in_bf16(m: nn.Module, b: Batch) -> Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return velocity_loss(m, b)

    for engine in ENGINES:
        yield row("float32", engine, model, velocity_loss, batches, true)
    for engine in ENGINES:
        yield row("autocast to bfloat16 in the loss", engine, model, in_bf16, batches, true)
    with tf32():
        yield row("float32, the caller allows TF32", "ghost", model, velocity_loss, batches, true)
    for precision in ("tf32", "bfloat16"):
        yield row(f"precision={precision!r}", "ghost", model, velocity_loss, batches, true, precision=precision)
    yield row("float32, everything taken twice (memory_bytes=0)", "ghost", model, velocity_loss, batches, true, memory_bytes=0)
    yield row(
        "float32, batches on the CPU, device=",
        "ghost",
        model,
        velocity_loss,
        [{k: x.cpu() for k, x in b.items()} for b in batches],
        true,
        device=DEVICE,
    )
    with deterministic():
        yield row("deterministic algorithms", "ghost", model, velocity_loss, batches, true)
    yield row("2 draws a sample", "ghost", model, velocity_loss, batches, truth(model, velocity_loss, batches, 2), draws=2)
    model.checkpointing = True
    for engine in ENGINES:
        yield row("activation checkpointing", engine, model, velocity_loss, batches, true)


def compiled(toy: bool) -> Iterator[dict[str, Any]]:
    model, batches = sit(toy)
    true = truth(model, velocity_loss, batches)
    for block in model.blocks:
        block.compile()
    for engine in ("auto", "loop"):
        yield row("compiled blocks", engine, model, velocity_loss, batches, true)


def devices_agree(toy: bool) -> dict[str, Any]:
    """Who a sample is, by a hash of its bits, must not depend on the device."""
    model, batches = sit(toy)
    here = gsnr.measure(model, velocity_loss, batches)
    there = gsnr.measure(copy.deepcopy(model).cpu(), velocity_loss, [{k: x.cpu() for k, x in b.items()} for b in batches])
    same = bool((here.moments.signs == there.moments.signs).all())
    a, b = here["all"], there["all"]
    note = f"signs {'agree' if same else 'DIFFER'}; tr Cov^2 off by {abs(a.cov_sq / b.cov_sq - 1):.1e}, gsnr by {abs(a.gsnr / b.gsnr - 1):.1e}"
    return {"what": "this device against the CPU", "engine": here.engine, "note": note}


def of_convolutions(toy: bool) -> Iterator[dict[str, Any]]:
    make = lambda: subjects.convnet(8, 8, 4) if toy else subjects.convnet(64)
    conv = subjects.build("conv", 2, torch.device(DEVICE), make)
    true = truth(conv.model, conv.loss, conv.batches)
    torch.backends.cudnn.allow_tf32 = False
    for engine in ENGINES:
        yield row("convolutions, float32", engine, conv.model, conv.loss, conv.batches, true)


def rows(toy: bool) -> Iterator[dict[str, Any]]:
    yield from of_sit(toy)
    yield devices_agree(toy)
    yield from of_convolutions(toy)
    yield from compiled(toy)
