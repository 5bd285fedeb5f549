"""Activation memory: the bytes that autograd keeps of a sample's forward pass until backward.

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
from gsnr.train.objective import Objective

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


def activations(config: TrainConfig) -> int:
    """Bytes of one more sample in a step's batch, in the configuration's precision; what autocast makes of the weights is there once and not among
    them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective = objective_of(config, "cpu")
        objective.model.checkpointing = config.checkpointing
        two, three = (_of_batch(objective, config, samples) for samples in (2, 3))  # alone, a sample may share more between views
    return three - two


def _of_batch(objective: Objective, config: TrainConfig, samples: int) -> int:
    batch = synthetic_batch(config, samples, "cpu")
    with torch.no_grad():
        ready = objective.alignment.prepare(batch, objective.model)
    with torch.autocast("cpu", DTYPES.get(config.precision), enabled=config.precision in DTYPES):
        return saved_bytes(lambda: objective(ready), [*objective.parameters(), *objective.buffers()])
