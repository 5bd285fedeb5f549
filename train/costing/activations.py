"""Activation memory: the bytes that autograd keeps of a forward pass until backward.

Counted once a storage, however many tensors and views share it; parameters and buffers, which are there anyway, are left out. The tensors are fake
(shapes and dtypes, no memory), of the CPU: its fused attention keeps queries, keys, values and outputs, as that of a GPU does, and no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from gsnr.train.config import TrainConfig
from gsnr.train.costing.counts import objective_of, synthetic_batch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def saved_bytes(forward: Callable[[], object], leave_out: Iterable[Tensor] = ()) -> int:
    """Of the storages that a forward pass saves for backward, but those of `leave_out`."""
    apart = {tensor.untyped_storage()._cdata for tensor in leave_out}
    kept: dict[int, torch.UntypedStorage] = {}  # by reference, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in apart:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def activations(config: TrainConfig, samples: int = 1) -> int:
    """Bytes of one forward pass of the training objective, in the configuration's precision."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective, batch = objective_of(config, "cpu"), synthetic_batch(config, samples, "cpu")
        objective.model.checkpointing = config.checkpointing
        with torch.no_grad():
            ready = objective.alignment.prepare(batch, objective.model)
        there = [*objective.parameters(), *objective.buffers()]
        with torch.autocast("cpu", DTYPES.get(config.precision), enabled=config.precision in DTYPES):
            return saved_bytes(lambda: objective(ready), there)
