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


def _alone(model: nn.Module, loss: Loss, batch: Batch, i: int) -> Tensor:
    with torch.enable_grad():  # as when measuring: some modules take another path without gradients
        return check_losses(loss(model, rows(batch, i, i + 1)), 1).detach()


def _change(alone: Tensor, jointly: Tensor) -> tuple[Tensor, float]:
    """(relative difference, what rounding explains)."""
    scale = torch.maximum(alone.abs(), jointly.abs()).double()
    return ((jointly - alone).double().abs() / scale).nan_to_num(0.0), _rounding(jointly)


def coupled(model: nn.Module, loss: Loss, batch: Batch) -> list[int] | None:
    """The samples of a batch whose loss is another alone than in the batch; None where that cannot be told, because the loss is random."""
    b = batch_size(batch)
    alone = torch.cat([_alone(model, loss, batch, i) for i in range(b)])
    if not torch.equal(alone[:1], _alone(model, loss, batch, 0)):
        return None
    with torch.enable_grad():
        change, rounding = _change(alone, check_losses(loss(model, batch), b).detach())
    return torch.nonzero(change > rounding).flatten().tolist()


def require_independent(model: nn.Module, loss: Loss, batch: Batch, jointly: Tensor | None = None) -> None:
    """Raises ValueError where the loss of a batch's first sample is another alone than beside the second. Says nothing of a random loss.

    `jointly`: the losses of the first two samples together, where they are known already.
    """
    if batch_size(batch) < 2:
        return
    if jointly is None:
        with torch.enable_grad():
            jointly = check_losses(loss(model, rows(batch, 0, 2)), 2).detach()
    alone = _alone(model, loss, batch, 0)
    change, rounding = _change(alone, jointly[:1])
    if change.item() > rounding and torch.equal(alone, _alone(model, loss, batch, 0)):
        raise ValueError(
            f"samples are coupled: a sample's loss changes by {change.item():.2g} of itself when another joins the batch (a contrastive loss, or "
            "statistics over the batch); per-sample gradients are not defined then"
        )
