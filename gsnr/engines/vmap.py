"""`vmap`: torch.func.vmap(grad(functional_call)). Works for any module whose loss draws no random numbers itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gsnr.batches import Batch, take_apart
from gsnr.engines import Loss, NotCovered, Visit, check_losses
from gsnr.gradients import Dense

REFUSALS = {  # a word of functorch's error -> what it means
    "randomness": "the loss draws random numbers inside (dropout, noise): use eval mode, or pass them in the batch",
    "mutate a captured": "the forward changes a buffer in place",
    "Sparse": "a gradient is sparse, as of nn.Embedding(sparse=True)",
}


class _LossOf(nn.Module):
    """A module whose forward is the loss, so that `functional_call` can swap the model's parameters beneath any loss function."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)


def per_sample(model: nn.Module, loss: Loss, batch: Batch, selected: dict[str, nn.Parameter], visit: Visit) -> Tensor:
    """See `gsnr.engines`. Attention takes the "math" path: fused kernels have no batching rule for their backward."""
    wrapped = _LossOf(model, loss)
    parameters = {f"model.{name}": p.detach() for name, p in selected.items()}

    tensors, together = take_apart(batch)

    def one(parameters: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
        row = together([x.unsqueeze(0) for x in sample])
        return check_losses(functional_call(wrapped, parameters, (row,)), 1).sum()

    every = vmap(grad_and_value(one), in_dims=(None, 0))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            gradients, losses = every(parameters, tensors)
        except RuntimeError as error:
            why = next((why for word, why in REFUSALS.items() if word in str(error)), None)
            if why is None:
                raise
            raise NotCovered(why) from error
    for name in selected:
        visit(name, Dense(gradients.pop(f"model.{name}")))
    return losses
