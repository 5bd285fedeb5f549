"""Does one sample change another's loss? Batch norm in train mode and contrastive losses do; per-sample gradients are then not defined."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsnr.engines import Batch, Loss, batch_size, check_losses, rows

# Relative difference that rounding explains, by the precision a loss was computed in (an autocast loss is float32 but rounded as bfloat16).
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}
ROUNDING_LOW = 5e-2


def require_no_batch_norm_in_training(model: nn.Module) -> None:
    """Raises ValueError for batch norm in train mode: a sample's loss would depend on the others, and its statistics would change."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"module {name!r} is batch norm in train mode, which couples samples; call model.eval() first")


def _rounding(losses: Tensor) -> float:
    return ROUNDING_LOW if torch.is_autocast_enabled(losses.device.type) else ROUNDING.get(losses.dtype, ROUNDING_LOW)


def changes(model: nn.Module, loss: Loss, batch: Batch) -> tuple[Tensor, float] | None:
    """((B,) relative difference between a sample's loss in the batch and alone, what rounding explains); None where the loss is random."""
    b = batch_size(batch)
    with torch.enable_grad():  # as when measuring: some modules take another path without gradients
        first = [check_losses(loss(model, rows(batch, 0, 1)), 1).detach() for _ in range(2)]
        if not torch.equal(*first):
            return None
        alone = torch.cat([first[0], *(check_losses(loss(model, rows(batch, i, i + 1)), 1).detach() for i in range(1, b))])
        jointly = check_losses(loss(model, batch), b).detach()
    scale = torch.maximum(alone.abs(), jointly.abs()).double()
    return ((jointly - alone).double().abs() / scale).nan_to_num(0.0), _rounding(jointly)


def require_independent(model: nn.Module, loss: Loss, batch: Batch) -> None:
    """Raises ValueError where the losses of a batch's first two samples are others alone than together. Says nothing of a random loss."""
    found = changes(model, loss, rows(batch, 0, min(2, batch_size(batch))))
    if found is not None and (found[0] > found[1]).any():
        worst = float(found[0].max())
        raise ValueError(
            f"samples are coupled: a sample's loss changes by {worst:.2g} of itself when another joins the batch (a contrastive loss, or statistics "
            "over the batch); per-sample gradients are not defined then"
        )
