"""Are the numbers an engine hands out those of one sample at a time? Spot checks while measuring, and the coupling test.

Samples are coupled where one changes another's loss (batch norm in train mode, contrastive losses); per-sample gradients are then not defined.
An engine is wrong for a model where what it takes for one sample's gradient is not: samples that do not lie first in some layer's input, rows
gathered unevenly from samples, parameters reached past the module. Both show in a sample that is measured alone, by one plain backward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsnr.batches import Batch, batch_size, each, rows
from gsnr.engines import Loss, NotCovered, check_losses
from gsnr.moments import SQUARES
from gsnr.surroundings import Buffers, changed, random_state_kept, set_buffers

# Relative difference that rounding explains, by the precision a loss was computed in (an autocast loss is float32 but rounded as bfloat16).
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}
ROUNDING_LOW = 5e-2
NORM_ROUNDING = 5e-2  # of a gradient's norm in float32, with room for bfloat16 inside a loss; an engine that is wrong is off by far more


def require_no_batch_norm_in_training(model: nn.Module) -> None:
    """Raises ValueError for batch norm in train mode: a sample's loss would depend on the others, and its statistics would change."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"module {name!r} is batch norm in train mode, which couples samples; call model.eval() first")


def require_steady_buffers(model: nn.Module, loss: Loss, batch: Batch, before: Buffers) -> None:
    """After a pass: raises ValueError, naming the buffer, where the forward changed one that the loss depends on. Then a sample's gradient
    depends on how many forwards went before it, and so on engine and chunks. Buffers that only count, or take notes, may change."""
    names = changed(model, before)
    if not names:
        return
    after = {name: model.get_buffer(name).clone() for name in names}
    device = next(model.parameters()).device

    def found(buffers: Buffers) -> Tensor:
        set_buffers(model, before | buffers)
        with random_state_kept(device):
            return losses_of(model, loss, batch).detach()

    as_it_was = found({})
    rounding = _rounding(model, as_it_was) if _differs(found({}), as_it_was, 0.0) else 1e-6  # some kernels add up in no fixed order
    for name, value in after.items():
        if _differs(found({name: value}), as_it_was, rounding):
            raise ValueError(
                f"the forward changes buffer {name!r}, and the loss depends on it: a sample's gradient would depend on the samples before it; "
                "call model.eval(), or make the forward leave it alone"
            )


def _rounding(model: nn.Module, losses: Tensor) -> float:
    low = torch.is_autocast_enabled(losses.device.type) or any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return ROUNDING_LOW if low else ROUNDING.get(losses.dtype, ROUNDING_LOW)


def losses_of(model: nn.Module, loss: Loss, batch: Batch) -> Tensor:
    with torch.enable_grad():  # as when measuring: some modules take another path without gradients
        return check_losses(loss(model, batch), batch_size(batch))


def _differs(a: Tensor, b: Tensor, rounding: float) -> bool:
    a, b = a.detach().double(), b.detach().double()
    return bool(((a - b).abs() > rounding * torch.maximum(a.abs(), b.abs())).any())


def _changed_by_others(model: nn.Module, loss: Loss, batch: Batch, i: int, jointly: Tensor) -> bool:
    """True where sample i's loss changes when all others become copies of it. The shapes stay, so rounding stays nearly the same."""
    alike = each(batch, lambda x: torch.cat([x[i : i + 1]] * len(x)))
    return _differs(losses_of(model, loss, alike)[i : i + 1], jointly[i : i + 1], 1e-5)


def coupled(model: nn.Module, loss: Loss, batch: Batch) -> list[int] | None:
    """The samples of a batch whose loss depends on the others; None where that cannot be told, because the loss is random."""
    jointly = losses_of(model, loss, batch).detach()
    if not torch.equal(jointly, losses_of(model, loss, batch).detach()):
        return None
    rounding = _rounding(model, jointly)
    alone = [losses_of(model, loss, rows(batch, i, i + 1)).detach() for i in range(len(jointly))]
    suspects = [i for i, value in enumerate(alone) if _differs(value, jointly[i : i + 1], rounding)]
    return [i for i in suspects if _changed_by_others(model, loss, batch, i, jointly)]


def spot_check(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    selected: dict[str, nn.Parameter],
    draws: int,
    i: int,
    losses: Tensor,
    q: dict[str, Tensor],
    double: bool,
) -> bool:
    """Sample i of a chunk (rows i K .. i K + K - 1) alone, by one plain backward, against what an engine found for the chunk: its losses,
    and q: name -> (C,) ||g_i||^2, from products in float64 if `double`. True where they agree, False where they cannot be compared because
    the loss is random.

    Raises ValueError where the samples are coupled, NotCovered where the engine is wrong, naming the parameter.
    """
    own = rows(batch, i * draws, (i + 1) * draws)
    alone = losses_of(model, loss, own)
    found = losses[i * draws : (i + 1) * draws]
    if _differs(alone, found, _rounding(model, alone)):
        if not torch.equal(alone.detach(), losses_of(model, loss, own).detach()):
            return False
        jointly = losses_of(model, loss, batch).detach()
        if any(_changed_by_others(model, loss, batch, row, jointly) for row in range(i * draws, (i + 1) * draws)):
            raise ValueError(
                f"samples are coupled: the loss of sample {i} changes when another joins the batch (a contrastive loss, or statistics over the "
                "batch); per-sample gradients are not defined then"
            )
        if _differs(alone, found, 0.1):
            return True  # nothing but rounding, so no number to be right about (or a loss that depends on the size of its batch)
    if not alone.requires_grad:
        return True
    with torch.enable_grad():
        gradients = torch.autograd.grad(alone.mean(), list(selected.values()), allow_unused=True)
    squares = [q[name][i].double() for name in selected]
    norms = [
        torch.linalg.vector_norm(g.detach().to_dense(), dtype=torch.float64) if g is not None else torch.zeros_like(squares[0]) for g in gradients
    ]
    mine_N, expected = torch.stack(squares).sqrt().tolist(), torch.stack(norms).tolist()  # each one wait for the device
    if not double and all(size == 0 or not SQUARES[0] < size**2 < SQUARES[1] for size in (max(expected), max(mine_N))):
        return True  # beyond float32 on both sides: measured again in float64, and checked then
    rounding = NORM_ROUNDING if alone.dtype != torch.float64 else ROUNDING[torch.float64]
    for name, mine, norm in zip(selected, mine_N, expected, strict=True):
        if abs(mine - norm) > rounding * (max(norm, mine) + 1e-2 * max(expected)):
            raise NotCovered(f"the gradient of parameter {name!r} at sample {i} has norm {mine:.4g}, by one plain backward {norm:.4g}")
    return True
