"""The contract of a projector."""

from __future__ import annotations

import torch
from torch import nn

from gsnr import plugins
from gsnr.plugins import hold
from gsnr.train.contracts.problem import alike

GRIDS = (2, 3)  # tokens a side


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that projector `name` breaks; what was checked otherwise."""
    hold(issubclass(plugins.find("projectors", name).Projector, nn.Module), name, "Projector is no nn.Module")
    for grid in GRIDS:
        torch.manual_seed(0)
        projector = plugins.find("projectors", name).Projector(64, 10, grid)
        h = torch.randn(2, grid * grid, 64)
        z = projector(h)
        shape = (2, grid * grid, 10)
        hold(z.shape == shape, name, f"makes {tuple(z.shape)} of {tuple(h.shape)}, for 10 channels; not {shape}")
        hold(bool(torch.isfinite(z).all()), name, "makes values that are not finite")
        hold(alike(projector(h[1:]), z[1:]), name, "a sample's projection depends on the other samples of its batch")
        hold(bool(list(projector.parameters())), name, "has no parameters to fit")
        z.square().sum().backward()
        for parameter, p in projector.named_parameters():
            hold(p.grad is not None and bool(p.grad.abs().sum() > 0), name, f"no gradient reaches parameter {parameter!r}")
    return ["shape: (B,T,D) to (B,T,C) on grids of 2 and 3 tokens a side, finite, one sample's is its own", "gradients reach every parameter"]
