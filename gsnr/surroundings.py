"""What a measurement must leave as it was: the random state, buffers, precision; and that of the loader it reads.

A pass over the batches begins with the same random state each time, so a shuffling loader yields the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gsnr.batches import Batch

Buffers = dict[str, Tensor]
FLOAT32, TF32, BFLOAT16 = PRECISIONS = ("float32", "tf32", "bfloat16")  # of model passes; bfloat16 is autocast
ALSO = {"fp32": FLOAT32, "bf16": BFLOAT16}  # what others call them
RandomState = tuple[Tensor, Tensor | None]  # of the CPU and of the GPU


@contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """Whether float32 products may take TF32, by whichever of PyTorch's two interfaces the caller uses: they refuse to be mixed."""
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:
        backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
        before = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "tf32" if tf32 else "ieee"
        try:
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision
        return
    cudnn = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def _generators(batches: Any) -> list[torch.Generator]:
    """Those that a loader draws the order of its batches from."""
    if not isinstance(batches, DataLoader):
        return []
    owners = [batches, batches.sampler, batches.batch_sampler, getattr(batches.batch_sampler, "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(x): x for x in found if isinstance(x, torch.Generator)}.values())


@contextmanager
def undisturbed(model: nn.Module, device: torch.device, batches: Any = None, precision: str = FLOAT32) -> Iterator[Buffers]:
    """Around a pass, which computes in `precision`, one of PRECISIONS: TF32 only where it says so, whatever the caller allows elsewhere; autocast
    where it or the caller does. Buffers and random state (also that of a loader's generators) are put back, so every pass begins with the
    same. Gives the buffers as they were, by name."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    try:
        low = torch.autocast(device.type, dtype=torch.bfloat16) if precision == BFLOAT16 else nullcontext()
        with _products(precision == TF32), low, torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield buffers
    finally:
        for generator, state in generators:
            generator.set_state(state)
        set_buffers(model, buffers)


def changed(model: nn.Module, buffers: Buffers) -> list[str]:
    """The names of the buffers that are no longer as they were."""
    return [name for name, buffer in model.named_buffers() if name in buffers and not torch.equal(buffer, buffers[name])]


def set_buffers(model: nn.Module, buffers: Buffers) -> None:
    """Puts back those that changed; one of another shape (a cache of positions that grew) is replaced."""
    with torch.no_grad():
        for name in changed(model, buffers):
            owner, _, leaf = name.rpartition(".")
            if model.get_buffer(name).shape == buffers[name].shape:
                model.get_buffer(name).copy_(buffers[name])
            else:
                model.get_submodule(owner)._buffers[leaf] = buffers[name].clone()


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Around statistics: no gradient, no TF32, since squared norms of small gradients need all 24 bits, and no autocast, even where the caller
    measures inside it."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _products(False) if device.type == "cuda" else nullcontext():
        yield


def random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def drawn_apart(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches, with random numbers (a loader's order, its data's augmentations) that do not depend on what is drawn between them."""
    with random_state_kept(device):
        iterator = iter(batches)
        theirs = random_state(device)
    while True:
        with random_state_kept(device):
            set_random_state(theirs, device)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            theirs = random_state(device)
        yield batch
