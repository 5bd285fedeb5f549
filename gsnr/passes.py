"""How a measurement goes over its batches: one pass for the moments, and a second look for the products with sums known by then.

The second look is at gradients that were kept (as factors, by the ghost engine) as long as they fit in memory, and is a second pass
otherwise. Both passes start from the same random state, which is put back: a loss with dropout draws the same masks twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gsnr.engines import Batch, Engine, Loss, Visit, batch_size, rows
from gsnr.estimates import Array
from gsnr.gradients import PerSample, inner
from gsnr.moments import ALL, Labels, Moments, by_group

COV_SAMPLES = 64  # samples (per rank) whose products with D are taken, for tr(Cov^2): a quarter of the cost of r_i at n = 256
Gradients = dict[str, PerSample]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured and how; `losses` has one entry for `measure`, two for `compare`. rows: of a chunk, None for whole batches."""

    model: nn.Module
    losses: tuple[Loss, ...]
    batches: Iterable[Batch]
    engine: Engine
    selected: dict[str, nn.Parameter]
    labels: Labels
    draws: int
    rows: int | None
    memory_bytes: int

    @property
    def device(self) -> torch.device:
        return next(iter(self.selected.values())).device

    def chunks(self) -> Iterator[Batch]:
        """Batches, cut to size. Raises ValueError for a batch that is no multiple of `draws`."""
        for batch in self.batches:
            b = batch_size(batch)
            if b % self.draws:
                raise ValueError(
                    f"a batch of {b} rows is no multiple of draws = {self.draws}; the draws of a sample must follow one another in one batch"
                )
            size = self.rows or b
            yield from (rows(batch, i, min(i + size, b)) for i in range(0, b, size))


@dataclass
class FirstPass:
    """First pass: a Moments per loss, x: group -> (n,) g_a,i . g_b,i (two losses), and the gradients of every chunk if they fitted."""

    moments: tuple[Moments, ...]
    x: dict[str, Array]
    kept: list[list[Gradients]] | None


@dataclass
class Products:
    """Second look, per loss: group -> (n,). r: with its own S; other: with the other loss's; e: with its own D, NaN where not taken."""

    r: dict[str, Array]
    other: dict[str, Array]
    e: dict[str, Array]


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Around a pass: no TF32, since squared norms of small gradients need all 24 bits; the random state is put back."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Around statistics: no gradient, and no autocast, even where the caller measures inside it."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _check_finite(q_C: Array, first: int) -> None:
    bad = np.flatnonzero(~np.isfinite(q_C))
    if len(bad):
        names = ", ".join(str(first + i) for i in bad[:8])
        raise ValueError(f"gradients of {len(bad)} samples are not finite (samples {names}{', ...' if len(bad) > 8 else ''})")


class _Keeper:
    """Holds every chunk's gradients until they no longer fit, and then none."""

    def __init__(self, budget: int) -> None:
        self.left, self.kept = budget, list[list[Gradients]]()

    def take(self, gradients: PerSample) -> bool:
        self.left -= gradients.nbytes()
        if self.left < 0:
            self.kept.clear()
        return self.left >= 0


@dataclass
class _Accumulate:
    """Visits the gradients of one chunk and one loss: adds them to the sums, and notes their norms and products with the first loss's."""

    plan: Plan
    mine: Moments
    start: int  # 0 where the chunk's first sample has sign +
    first: Gradients | None  # those of the first loss, where this is the second
    keeper: _Keeper
    q: dict[str, Tensor] = field(default_factory=dict)
    draw_q: dict[str, Tensor] = field(default_factory=dict)
    x: dict[str, Tensor] = field(default_factory=dict)
    held: Gradients = field(default_factory=dict)

    def __call__(self, name: str, gradients: PerSample) -> None:
        with exact(self.plan.device):
            draws = self.plan.draws
            if draws > 1:
                self.draw_q[name] = gradients.square_norms().view(-1, draws).sum(1)
                gradients = gradients.pooled(draws)
            self.q[name] = gradients.accumulate(self.mine.plus[name], self.mine.minus[name], self.start)
            if self.first is not None:
                self.x[name] = inner(self.first[name], gradients)
            fits = self.keeper.take(gradients)
            meets_another = len(self.plan.losses) > 1 and self.first is None
            if fits or meets_another:
                self.held[name] = gradients
            elif self.first is not None:
                del self.first[name]


def first_pass(plan: Plan, *, keep: bool) -> FirstPass:
    """Raises ValueError for gradients that are not finite, naming the samples."""
    moments = tuple(Moments.empty(plan.labels, plan.selected, plan.draws) for _ in plan.losses)
    x_parts: list[dict[str, Array]] = []
    keeper = _Keeper(plan.memory_bytes if keep else -1)
    with undisturbed(plan.device):
        for chunk in plan.chunks():
            n = batch_size(chunk) // plan.draws
            signs = moments[0].next_signs(n)
            held: list[Gradients] = []
            for loss, mine in zip(plan.losses, moments, strict=True):
                visit = _Accumulate(plan, mine, int(signs[0] < 0), held[0] if held else None, keeper)
                losses = plan.engine(plan.model, loss, chunk, plan.selected, visit)
                mine.append(visit.q, visit.draw_q, signs, losses)
                _check_finite(mine.q[ALL][-n:], mine.n - n)
                held.append(visit.held)
            if visit.x:
                x_parts.append(by_group(visit.x, plan.labels))
            if keeper.left >= 0:
                keeper.kept.append(held)
    x = {group: np.concatenate([part[group] for part in x_parts] or [np.empty(0)]) for group in moments[0].q}
    return FirstPass(moments, x if len(moments) > 1 else {}, keeper.kept if keeper.left >= 0 else None)


@dataclass
class _Multiply:
    """Visits the gradients of one chunk and loss k: products with its own S, with the other loss's, and (the first few) with its own D."""

    plan: Plan
    mine: Moments
    own: dict[str, Tensor]
    others: dict[str, Tensor] | None
    with_e: bool
    r: dict[str, Tensor] = field(default_factory=dict)
    other: dict[str, Tensor] = field(default_factory=dict)
    e: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, gradients: PerSample) -> None:
        with exact(self.plan.device):
            self.r[name] = gradients.dots(self.own[name])
            if self.others is not None:
                self.other[name] = gradients.dots(self.others[name])
            if self.with_e:
                self.e[name] = gradients.dots(self.mine.plus[name] - self.mine.minus[name])

    def parts(self) -> Products:
        r = by_group(self.r, self.plan.labels)
        e = by_group(self.e, self.plan.labels) if self.e else {group: np.full_like(value, np.nan) for group, value in r.items()}
        return Products(r, by_group(self.other, self.plan.labels) if self.other else {}, e)


def second_look(plan: Plan, moments: tuple[Moments, ...], kept: list[list[Gradients]] | None) -> tuple[Products, ...]:
    """Products with the sums in `moments` (by now those of all ranks). Raises ValueError where a second pass sees other losses than the first."""
    totals = [{name: mine.total(name) for name in plan.labels} for mine in moments]
    parts: list[list[Products]] = [[] for _ in moments]
    seen: list[list[Array]] = [[] for _ in moments]
    done = 0
    with undisturbed(plan.device):
        for chunk in plan.chunks() if kept is None else kept:
            for k, mine in enumerate(moments):
                visit = _Multiply(plan, mine, totals[k], totals[1 - k] if len(totals) > 1 else None, done < COV_SAMPLES)
                if isinstance(chunk, dict):
                    losses = plan.engine(plan.model, plan.losses[k], chunk, plan.selected, _pooling(plan.draws, visit))
                    seen[k].append(losses.double().cpu().numpy().reshape(-1, plan.draws).mean(1))
                else:
                    for name, gradients in chunk[k].items():
                        visit(name, gradients)
                parts[k].append(visit.parts())
            done += len(parts[0][-1].r[ALL])
            if done > COV_SAMPLES:  # exactly so many, wherever chunks end
                for part in (parts_k[-1] for parts_k in parts):
                    for value in part.e.values():
                        value[max(0, len(value) - (done - COV_SAMPLES)) :] = np.nan
    if kept is None:
        for losses_k, mine in zip(seen, moments, strict=True):
            _check_same(np.concatenate(losses_k or [np.empty(0)]), mine.losses)
    return tuple(_joined(part, list(mine.q)) for part, mine in zip(parts, moments, strict=True))


def _pooling(draws: int, visit: Visit) -> Visit:
    return visit if draws == 1 else lambda name, gradients: visit(name, gradients.pooled(draws))


def _joined(parts: list[Products], groups: list[str]) -> Products:
    def column(values: list[dict[str, Array]]) -> dict[str, Array]:
        return {group: np.concatenate([value[group] for value in values if value] or [np.empty(0)]) for group in groups}

    return Products(column([p.r for p in parts]), column([p.other for p in parts]), column([p.e for p in parts]))


def _check_same(losses: Array, before: Array) -> None:
    """r_i and q_i must be of the same sample."""
    scale = np.abs(before).max(initial=0.0)
    if losses.shape != before.shape or not np.allclose(losses, before, rtol=1e-3, atol=1e-6 * scale):
        raise ValueError("the batches came in another order, or with other random numbers, the second time; pass a list (no shuffling loader)")
