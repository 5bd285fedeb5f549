"""The contract of a router."""

from __future__ import annotations

import torch
from torch import nn

from gsnr import plugins
from gsnr.plugins import hold
from gsnr.train.contracts.problem import alike, hidden
from gsnr.train.routers import BETAS, RouterConfig, RouterModule

SIZES = {"mid": 4, "deep": 4}


def away_from_zero(module: nn.Module) -> None:
    """Parameters that start at zero become normal; the others keep their usual scale, at which no softmax saturates."""
    for p in module.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.3)


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that router `name` breaks; what was checked otherwise."""
    hold(issubclass(plugins.find("routers", name).Router, RouterModule), name, "Router does not extend RouterModule")
    for beta in BETAS:
        _check(name, beta)
    return [
        "weights: (B,L) and (B, groups) in float32, not negative, alphas (and beta by softmax) sum to 1",
        "a learned router starts at the uniform mixture; one sample's weights are its own",
        "gradients reach every parameter",
    ]


def _check(name: str, beta: str) -> None:
    torch.manual_seed(0)
    router = plugins.find("routers", name).Router(RouterConfig(sizes=SIZES, beta=beta, hidden_size=8))
    learned = list(router.parameters())
    t, h = torch.tensor([0.0, 0.05, 0.42, 0.999, 1.0]), hidden(5)
    start = router(t, h)
    shapes = {key: tuple(x.shape) for key, x in start.items()}
    hold(shapes == {"mid": (5, 4), "deep": (5, 4), "beta": (5, 2)}, name, f"weights of shapes {shapes} for two groups of four layers and five times")
    hold(alike(start["mid"], torch.full((5, 4), 0.25)), name, "does not start with equal weights of the layers; initialise its last layer to 0")
    hold(not learned or alike(start["beta"], torch.full((5, 2), 0.5)), name, "does not start with equal weights of the groups")
    away_from_zero(router)
    weights = router(t, h)
    for key, w in weights.items():
        hold(w.dtype == torch.float32 and bool((w >= 0).all()), name, f"weights {key!r} are {w.dtype}, or negative")
        hold(alike(router(t[1:2], h[1:2])[key], w[1:2]), name, f"a sample's {key!r} depends on the other samples of its batch")
        sums = key != "beta" or beta == "softmax"
        hold(not sums or alike(w.sum(-1), torch.ones(5)), name, f"weights {key!r} do not sum to 1")
    if not router.reads_content:
        hold(torch.equal(router(t, None)["mid"], weights["mid"]), name, "reads the hidden state, but does not say reads_content = True")
    if learned:
        sum((w * torch.randn_like(w)).sum() for w in weights.values()).backward()
        for parameter, p in router.named_parameters():
            hold(p.grad is not None and bool(p.grad.abs().sum() > 0), name, f"no gradient reaches parameter {parameter!r}")
