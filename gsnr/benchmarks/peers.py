"""Other libraries' ways to the norms of per-sample gradients and to their sum, for `gsnr bench`. Each is found by importability.

A peer is a function peer(model, loss) -> one, which may alter the model, and one(batch) -> q_B = ||g_i||^2, which leaves S = sum_i g_i in
the parameters' .grad. What a library cannot do is an exception, raised by it or here; nothing is worked around.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from gsnr.batches import Batch
from gsnr.engines import Loss

One = Callable[[Batch], Tensor]


def opacus(model: nn.Module, loss: Loss) -> One:
    """Opacus (Yousefpour et al. 2021), hooks: every per-sample gradient, then its norm, as its DPOptimizer takes it."""
    wrapped = import_module("opacus.grad_sample").GradSampleModule(model, loss_reduction="sum")
    parameters: list[Any] = list(model.parameters())  # with a grad_sample that nn.Parameter does not declare

    def one(batch: Batch) -> Tensor:
        loss(wrapped, batch).sum().backward()
        norms = [p.grad_sample.flatten(1).norm(2, dim=-1) for p in parameters]
        wrapped.set_grad_sample_to_none()
        return torch.stack(norms, dim=1).square().sum(1)

    return one


def opacus_ghost(model: nn.Module, loss: Loss) -> One:
    """Opacus, first pass of ghost clipping (Li et al. 2022): norms of Linear and Embedding layers without their gradients."""
    wrapped = import_module("opacus.grad_sample").GradSampleModuleFastGradientClipping(model, loss_reduction="sum")

    def one(batch: Batch) -> Tensor:
        loss(wrapped, batch).sum().backward()
        return wrapped.get_norm_sample().square()

    return one


def backpack(model: nn.Module, loss: Loss) -> One:
    """BackPACK (Dangel et al. 2020), BatchL2Grad; only modules that own parameters are extended, the others need nothing."""
    library, extension = import_module("backpack"), import_module("backpack.extensions").BatchL2Grad()
    for module in list(model.modules()):
        if any(True for _ in module.parameters(recurse=False)):
            library.extend(module)
    parameters: dict[str, Any] = dict(model.named_parameters())  # with a batch_l2 that nn.Parameter does not declare

    def one(batch: Batch) -> Tensor:
        losses = loss(model, batch)
        with library.backpack(extension):
            losses.sum().backward()
        missing = [name for name, p in parameters.items() if not hasattr(p, "batch_l2")]
        if missing:
            kind = type(model.get_submodule(missing[0].rpartition(".")[0])).__name__
            raise NotImplementedError(f"BatchL2Grad has no rule for {kind} ({missing[0]})")
        return torch.stack([p.batch_l2 for p in parameters.values()], dim=1).sum(1)

    return one


def torchjd(model: nn.Module, loss: Loss) -> One:
    """TorchJD (Quinton & Rey 2024): the Gramian of a batch's gradients, whose diagonal are the norms and whose row sums g_i . S."""
    engine = import_module("torchjd.autogram").Engine(model, batch_dim=0)

    def one(batch: Batch) -> Tensor:
        losses = loss(model, batch)
        gramian = engine.compute_gramian(losses)
        losses.sum().backward()
        return gramian.diagonal()

    return one


PEERS = {"opacus": opacus, "opacus-ghost": opacus_ghost, "backpack": backpack, "torchjd": torchjd}
COMPUTES = {"opacus": "gradients and sum", "opacus-ghost": "norms and sum", "backpack": "norms and sum", "torchjd": "Gramian and sum"}
PACKAGES = {"opacus": "opacus", "opacus-ghost": "opacus", "backpack": "backpack-for-pytorch", "torchjd": "torchjd"}


def installed(name: str) -> bool:
    """Whether the peer's library can be found; it is not imported."""
    return find_spec(name.partition("-")[0]) is not None


def versions() -> dict[str, str]:
    """package -> version, of the peers that are installed."""
    return {PACKAGES[name]: metadata.version(PACKAGES[name]) for name in PEERS if installed(name)}
