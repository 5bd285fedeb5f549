"""`gsnr.measure`, the one call: per-sample gradients -> moments -> estimates with intervals, for any model and any per-sample loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gsnr.engines import Batch, Gradients, Loss, chunk_within, default_memory, find
from gsnr.estimates import Array, Estimate
from gsnr.moments import Labels, Moments, by_group, inner_products

ALL = "all"  # the group every selected parameter belongs to


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `measure` returns: `result[group]` is an Estimate, `result.groups` the labels, `result.losses` float64 (n,)."""

    moments: Moments
    estimates: dict[str, Estimate]
    losses: Array
    engine: str

    def __getitem__(self, group: str) -> Estimate:
        if group not in self.estimates:
            raise KeyError(f"no group {group!r}; groups: {', '.join(self.groups)}")
        return self.estimates[group]

    @property
    def groups(self) -> tuple[str, ...]:
        """Labels, "all" first."""
        return tuple(self.estimates)

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    def merge(self, other: Result) -> Result:
        """Pools two results of disjoint samples: exact signal and noise, but no interval (that needs g_i . (S_1 + S_2))."""
        moments = self.moments.merge(other.moments)
        losses = np.concatenate([self.losses, other.losses])
        engine = self.engine if self.engine == other.engine else f"{self.engine}+{other.engine}"
        return Result(moments=moments, estimates=moments.estimates(None), losses=losses, engine=engine)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 while measuring: squared norms of small gradients need all 24 bits."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def select(model: nn.Module, parameters: Callable[[str], bool] | None) -> dict[str, nn.Parameter]:
    """name -> parameter for all that require grad and pass the predicate. Raises ValueError where none does."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = {name: p for name, p in trainable.items() if parameters is None or parameters(name)}
    if not chosen:
        known = ", ".join(list(trainable)[:5]) or "none requires grad"
        raise ValueError(f"no parameter selected out of {len(trainable)} trainable ones ({known}, ...)")
    return chosen


def label(selected: Iterable[str], groups: Callable[[str], str | tuple[str, ...]] | None) -> Labels:
    """name -> labels, "all" always first."""
    labels: Labels = {}
    for name in selected:
        own = () if groups is None else groups(name)
        labels[name] = (ALL, *([own] if isinstance(own, str) else own))
    return labels


def _check_finite(q_C: Array, first: int) -> None:
    bad = np.flatnonzero(~np.isfinite(q_C))
    if len(bad):
        names = ", ".join(str(first + i) for i in bad[:8])
        raise ValueError(f"gradients of {len(bad)} samples are not finite (samples {names}{', ...' if len(bad) > 8 else ''})")


def _check_uncoupled(model: nn.Module) -> None:
    """Raises ValueError for batch norm in train mode: a sample's loss would depend on the others, and its statistics would change."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"module {name!r} is batch norm in train mode, which couples samples; call model.eval() first")


def _inner_with_sum(moments: Moments, chunks: Iterable[Gradients]) -> dict[str, Array]:
    """group -> (n,) r_i = g_i . S, from the gradients that the moments were made of."""
    parts = [by_group(inner_products(chunk, moments.sums), moments.labels) for chunk in chunks]
    return {group: np.concatenate([part[group] for part in parts]) for group in moments.q}


def _check_same_order(first: Moments, second: Moments) -> None:
    """r_i and q_i must be of the same sample. Raises ValueError where the second pass saw other gradients than the first."""
    a, b = (np.concatenate(m.q[ALL]) for m in (first, second))
    if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-6 * a.max()):
        raise ValueError("the batches came in another order, or with other random numbers, the second time; pass a list (no shuffling loader)")


def measure(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    engine: str = "auto",
    parameters: Callable[[str], bool] | None = None,
    groups: Callable[[str], str | tuple[str, ...]] | None = None,
    *,
    interval: bool = True,
    chunk: int | None = None,
    memory_bytes: int | None = None,
) -> Result:
    """Measures the gradient signal-to-noise ratio of a per-sample loss over independent samples.

    model       any module; its mode (train or eval), gradients and random state are left as they are.
    loss        loss(model, batch) -> (B,) one value per sample, any scale, no coupling across samples; must accept B = 1.
    batches     iterable of dict[str, Tensor], every tensor with leading dimension B. Gone through twice where the per-sample
                gradients do not fit `memory_bytes`, so its order must not change (an iterator is turned into a list first).
    engine      "auto" | "loop" | "vmap".
    parameters  predicate on names; default: all that require grad.
    groups      parameter name -> label or labels; "all" is always there.
    interval    also compute r_i = g_i . S, which the jackknife interval needs.
    chunk       samples whose gradients are taken at once; default from `memory_bytes`.
    memory_bytes    what per-sample gradients may take; default 1 GiB on a CPU, a quarter of the free memory on a GPU.

    Raises ValueError for an unknown engine, batch norm in train mode, an empty selection, n < 2, a loss of another
    shape, gradients that are not finite, or batches that come in another order the second time.
    Source: AHPA (Eq. 1, Eq. 6, Appendix E.1); estimators as in `gsnr.estimates`.
    """
    per_sample = find(engine)
    _check_uncoupled(model)
    selected = select(model, parameters)
    labels = label(selected, groups)
    if isinstance(batches, Iterator):
        batches = list(batches)
    held_bytes = sum(p.numel() * max(4, p.element_size()) for p in selected.values())
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    memory = default_memory(selected) if memory_bytes is None else memory_bytes
    size = chunk or chunk_within(memory, selected)

    def gradients() -> Iterator[tuple[Tensor, Gradients]]:
        for batch in batches:
            yield from per_sample(model, loss, batch, selected, size)

    with _full_float32():
        moments = Moments(labels)
        losses: list[Array] = []
        kept: list[Gradients] | None = [] if interval else None
        n = 0
        for losses_C, chunk_gradients in gradients():
            moments.add(chunk_gradients)
            _check_finite(moments.q[ALL][-1], n)
            losses.append(losses_C.double().cpu().numpy())
            n += len(losses_C)
            if kept is not None:
                kept.append(chunk_gradients)
                kept = kept if n * held_bytes <= memory else None
        if n < 2:
            raise ValueError(f"{n} samples: the variance of a gradient needs at least 2")
        if not any(q.any() for q in moments.q[ALL]):
            warnings.warn(f"all {n} gradients are exactly zero, so the result is NaN: is the loss detached, or the output gated by 0?", stacklevel=2)
        r = None
        if kept is not None:
            r = _inner_with_sum(moments, kept)
        elif interval:
            again = Moments(labels)
            r = _inner_with_sum(moments, (again.watch(g) for _, g in gradients()))
            _check_same_order(moments, again)
    used = per_sample.__module__.rpartition(".")[2]
    return Result(moments=moments, estimates=moments.estimates(r), losses=np.concatenate(losses), engine=used)
