"""Batches: dicts, lists, tuples and registered pytrees of tensors, nested in any way, all with the same leading dimension B.

What is not a tensor (a string, a number, None) is handed to the loss as it is, for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Batch = Any  # dict[str, Tensor], (Tensor, Tensor), Tensor, ...


def _registered(batch: Batch) -> Batch:
    """The batch with mappings that pytrees do not know (those of tokenizers) as dicts."""
    leaves, structure = pytree.tree_flatten(batch)
    if not any(isinstance(x, Mapping) for x in leaves):
        return batch
    return pytree.tree_unflatten([_registered(dict(x)) if isinstance(x, Mapping) else x for x in leaves], structure)


def take_apart(batch: Batch) -> tuple[list[Tensor], Callable[[list[Tensor]], Batch]]:
    """A batch's tensors, and the function that puts others in their place."""
    leaves, structure = pytree.tree_flatten(_registered(batch))
    places = [k for k, x in enumerate(leaves) if isinstance(x, Tensor)]

    def together(tensors: list[Tensor]) -> Batch:
        new = dict(zip(places, tensors, strict=True))
        return pytree.tree_unflatten([new.get(k, x) for k, x in enumerate(leaves)], structure)

    return [leaves[k] for k in places], together


def each(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with function(x) for every tensor x."""
    tensors, together = take_apart(batch)
    return together([function(x) for x in tensors])


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Samples start..stop of a batch."""
    return each(batch, lambda x: x[start:stop])


def double(batch: Batch) -> Batch:
    """The batch with its floating-point tensors in float64."""
    return each(batch, lambda x: x.double() if x.is_floating_point() else x)


def device_named(device: str | torch.device | None) -> torch.device | None:
    """Raises ValueError for a device that torch does not know, or that this machine has not."""
    try:
        return None if device is None else torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from error


def moved(batch: Batch, device: torch.device | None) -> Batch:
    """The batch on a device; where it is for None."""
    return batch if device is None else each(batch, lambda x: x.to(device, non_blocking=True))


def _name(path: Any) -> str:
    """An entry, by its keys and places in the batch."""
    if not path:
        return "a batch"
    keys = [getattr(step, "key", getattr(step, "idx", getattr(step, "name", step))) for step in path]
    return f"batch entry {'.'.join(map(str, keys))!r}"


def versions(batch: Batch) -> dict[str, int]:
    """Of each tensor, by its name, how often it was changed in place; those made under inference mode do not say."""
    named = pytree.tree_flatten_with_path(_registered(batch))[0]
    return {_name(path): x._version for path, x in named if isinstance(x, Tensor) and not x.is_inference()}


def batch_size(batch: Batch) -> int:
    """The common leading dimension B. Raises ValueError, naming the entry, where there is none."""
    sizes: dict[str, int] = {}
    for path, x in pytree.tree_flatten_with_path(_registered(batch))[0]:
        if isinstance(x, Tensor):
            if not x.ndim:
                raise ValueError(f"{_name(path)} has no leading sample dimension")
            sizes[_name(path)] = x.shape[0]
        elif any(isinstance(value, Tensor) for value in getattr(x, "__dict__", {}).values()):
            raise ValueError(f"{_name(path)} is a {type(x).__name__}, which cannot be cut into samples; make it a dict or a tuple of tensors")
    if not sizes:
        raise ValueError(f"a batch without tensors ({type(batch).__name__}); batches must be an iterable of dicts, lists or tuples of tensors")
    first = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size != first:
            raise ValueError(f"{name} holds {size} samples, others {first}: every tensor needs the same leading dimension")
    if not first:
        raise ValueError("a batch without samples")
    return first
