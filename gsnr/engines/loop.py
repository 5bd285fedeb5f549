"""`loop`: one forward and backward per sample. Slow, plain, works for anything autograd differentiates: the reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsnr.batches import Batch, batch_size, rows
from gsnr.engines import Loss, Visit, check_losses
from gsnr.gradients import Dense


def per_sample(model: nn.Module, loss: Loss, batch: Batch, selected: dict[str, nn.Parameter], visit: Visit) -> Tensor:
    """See `gsnr.engines`. The model sees batches of one."""
    losses, gradients = [], []
    for i in range(batch_size(batch)):
        with torch.enable_grad():
            value = check_losses(loss(model, rows(batch, i, i + 1)), 1)
            if value.requires_grad:
                gradients.append(torch.autograd.grad(value.sum(), list(selected.values()), allow_unused=True, materialize_grads=True))
            else:
                gradients.append(tuple(torch.zeros_like(p) for p in selected.values()))
        losses.append(value.detach())
    for name, column in zip(selected, zip(*gradients, strict=True), strict=True):
        visit(name, Dense(torch.stack([g.to_dense() for g in column])))  # an embedding's may be sparse
    return torch.cat(losses)
