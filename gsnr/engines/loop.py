"""`loop`: one forward and backward per sample. Slow, plain, works for anything autograd differentiates: the reference."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gsnr.engines import Batch, Gradients, Loss, batch_size, check_losses


def per_sample_gradients(
    model: nn.Module, loss: Loss, batch: Batch, selected: dict[str, nn.Parameter], chunk: int
) -> Iterator[tuple[Tensor, Gradients]]:
    """See `gsnr.engines`. The model sees batches of one."""
    b = batch_size(batch)
    for start in range(0, b, chunk):
        losses, rows = [], []
        for i in range(start, min(start + chunk, b)):
            with torch.enable_grad():
                value = check_losses(loss(model, {key: x[i : i + 1] for key, x in batch.items()}), 1)
                if value.requires_grad:
                    gradients = torch.autograd.grad(value.sum(), list(selected.values()), allow_unused=True, materialize_grads=True)
                else:
                    gradients = tuple(torch.zeros_like(p) for p in selected.values())
            losses.append(value.detach())
            rows.append(gradients)
        yield torch.cat(losses), {name: torch.stack(column) for name, column in zip(selected, zip(*rows, strict=True), strict=True)}
