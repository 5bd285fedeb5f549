"""How a measurement goes over its batches: one pass for the moments, and a second look for the products with sums known by then.

The second look is at the gradients of those chunks that fitted in memory (as factors, by the ghost engine); the other chunks are run again, each
from the random state it had: a loss with dropout draws the same masks twice. The random state is put back at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnr.batches import Batch, batch_size, moved, rows, versions
from gsnr.coupling import losses_of, require_steady_buffers, spot_check
from gsnr.engines import Engine, Losses, NotCovered, Visit, chunk_within, ghost, loop
from gsnr.estimates import Array
from gsnr.gradients import PerSample, Signs, Zero, inner
from gsnr.hashing import Keys, signs_of
from gsnr.identity import Identify, Index
from gsnr.moments import ALL, Labels, Moments, by_group
from gsnr.ranks import NotFinite
from gsnr.surroundings import FLOAT32, RandomState, drawn_apart, exact, random_state, random_state_kept, set_random_state, undisturbed

COV_SAMPLES = 64  # samples, of all ranks together, whose products with D are taken, for tr(Cov^2)
MANY_TAKEN = 8  # from one in so many of a chunk on, products with D are taken of all its samples
CHANGED = "the batches came in another order, or with other random numbers, the second time; pass a list"
Gradients = dict[str, PerSample]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured and how. Several losses: the first is what each of the others is compared with. samples: of a chunk; by default whole
    batches for ghost, and for the others as many as fit."""

    model: nn.Module
    losses: Losses
    batches: Iterable[Batch]
    engine: Engine
    selected: dict[str, nn.Parameter]
    labels: Labels
    draws: int
    samples: int | None
    memory_bytes: int
    to: torch.device | None = None  # where batches are moved
    index: Index | None = None  # who a sample is: `gsnr.identity`
    double: bool = False  # gradients and sums in float64, as the engine found them
    precision: str = FLOAT32  # of the model's passes

    @property
    def device(self) -> torch.device:
        return next(iter(self.selected.values())).device

    @property
    def chunk_rows(self) -> int | None:
        """Rows of a chunk; None for whole batches."""
        if self.samples is None and self.engine is ghost.per_sample:
            return None
        return self.draws * (self.samples or max(1, chunk_within(self.memory_bytes, self.selected) // self.draws))

    def chunks(self) -> Iterator[Batch]:
        """Batches, cut to size. Raises ValueError for a batch that is no multiple of `draws`."""
        for batch in drawn_apart(self.batches, self.device):
            b = batch_size(batch)
            if b % self.draws:
                raise ValueError(
                    f"a batch of {b} rows is no multiple of draws = {self.draws}; the draws of a sample must follow one another in one batch"
                )
            size, batch = self.chunk_rows or b, moved(batch, self.to)
            yield from (rows(batch, i, min(i + size, b)) for i in range(0, b, size))

    def gradients(self, chunk: Batch, visits: Sequence[Visit]) -> list[Tensor]:
        """Visits the gradients of every loss, and returns their values, (B,) each. Raises ValueError where a loss changes the batch."""
        before = versions(chunk)
        if self.losses.common is not None and self.engine is ghost.per_sample:
            found = ghost.several(self.model, self.losses, chunk, self.selected, visits)
        else:
            found = [self.engine(self.model, self.losses.alone(k), chunk, self.selected, visit) for k, visit in enumerate(visits)]
        if changed := [name for name, version in versions(chunk).items() if before.get(name, version) != version]:
            raise ValueError(f"the loss changes {changed[0]} in place, and is called several times for it; work on a copy")
        return found


@dataclass
class FirstPass:
    """First pass: a Moments per loss, the samples' keys, x: for each loss but the first, group -> (n,) products of its gradients with the first's,
    and per chunk its gradients by each loss, if they fitted, or else the random state it started from."""

    moments: tuple[Moments, ...]
    keys: Keys
    x: list[dict[str, Array]]
    chunks: list[list[Gradients] | RandomState]


@dataclass
class Products:
    """Second look, per loss: group -> (n,). r: with its own S; e: with its own D, NaN where not taken; others: with the S of the losses that it
    is compared with, for the first loss all of the others, for each of them the first."""

    r: dict[str, Array]
    e: dict[str, Array]
    others: list[dict[str, Array]]


def _check_finite(mine: Moments, last: int) -> None:
    """Of the last samples. Square norms that leave float32's range while the sums do not are left for `Moments.beyond_float32`."""
    q_C, first = mine.q[ALL][-last:], mine.n - last
    bad = np.flatnonzero(~np.isfinite(q_C))
    if len(bad) and not (mine.narrow and all(s.isfinite().all() for half in (mine.plus, mine.minus) for s in half.values())):
        names = ", ".join(str(first + i) for i in bad[:8])
        raise NotFinite(f"gradients of {len(bad)} samples are not finite (samples {names}{', ...' if len(bad) > 8 else ''})")


class _Budget:
    """Memory for gradients that are kept, chunk by chunk: each whole or not at all."""

    def __init__(self, memory_bytes: int) -> None:
        self.left, self.spent, self.fits = memory_bytes, 0, memory_bytes > 0

    def take(self, gradients: PerSample) -> bool:
        """True as long as the chunk at hand fits."""
        self.spent += gradients.nbytes()
        self.fits = self.fits and self.spent <= self.left
        return self.fits

    def close(self) -> bool:
        """Ends a chunk: True if it is kept."""
        kept, self.left = self.fits, self.left - self.spent * self.fits
        self.spent, self.fits = 0, self.left > 0
        return kept


@dataclass
class _Accumulate:
    """Visits the gradients of one chunk and one loss: adds them to the sums, and notes their norms and products with the first loss's.
    role: the number of the loss, and how many there are."""

    plan: Plan
    mine: Moments
    signs: Signs
    budget: _Budget
    role: tuple[int, int]
    first: Gradients  # those of the first loss
    q: dict[str, Tensor] = field(default_factory=dict)
    draw_q: dict[str, Tensor] = field(default_factory=dict)
    x: dict[str, Tensor] = field(default_factory=dict)
    held: Gradients = field(default_factory=dict)

    def __call__(self, name: str, gradients: PerSample) -> None:
        with exact(self.plan.device):
            draws = self.plan.draws
            gradients = gradients.double() if self.plan.double else gradients
            if draws > 1:
                self.draw_q[name] = gradients.square_norms().view(-1, draws).sum(1)
                gradients = gradients.pooled(draws)
            if not isinstance(gradients, Zero):
                self.mine.reach(name)
            self.q[name] = gradients.accumulate(self.mine.plus[name], self.mine.minus[name], self.signs)
            own, count = self.role
            if own:
                self.x[name] = inner(self.first[name], gradients)
            fits = self.budget.take(gradients)
            if fits or (own == 0 and count > 1):
                self.held[name] = gradients
            elif own and own == count - 1:
                del self.first[name]


def _spot_check(plan: Plan, k: int, chunk: Batch, number: int, losses: Tensor, q: dict[str, Tensor]) -> None:
    """One sample of chunk number 0, 1, 7, 31, 127, ... against one plain backward of its own, for loss k. A lone chunk: also as number 1."""
    by_ghost, loss = plan.engine is ghost.per_sample, plan.losses.alone(k)
    if number and ((number + 1) & number or (number + 1).bit_length() % 2 or plan.engine is loop.per_sample):
        return
    n = len(losses) // plan.draws
    with random_state_kept(plan.device):
        if not by_ghost and not number:  # the other engines never saw the samples together
            losses = losses_of(plan.model, loss, chunk).detach()
        i = n // 2 if number == 1 else n - 1 - number % n
        try:
            same = spot_check(plan.model, loss, chunk, plan.selected, plan.draws, i, losses, q, plan.double)
        except NotCovered as error:
            raise NotCovered(f"{error}; {ghost.SHAPES}" if by_ghost else str(error)) from error
        if not same and by_ghost and not number:
            ghost.verify(plan.model, loss, chunk, plan.selected)


def first_pass(plan: Plan, *, keep: bool) -> FirstPass:
    """Raises ValueError for coupled samples and gradients that are not finite, naming them; NotCovered where the engine does not fit."""
    count = len(plan.losses.each)
    moments = tuple(Moments.empty(plan.labels, plan.selected, plan.draws, plan.double) for _ in range(count))
    identify, keys = Identify(plan.index, plan.draws), np.empty(0, dtype=np.uint64)
    x_parts: list[list[dict[str, Array]]] = [[] for _ in range(count)]
    budget = _Budget(plan.memory_bytes if keep else 0)
    chunks: list[list[Gradients] | RandomState] = []
    latest: list[tuple[Tensor, dict[str, Tensor]]] = []
    with undisturbed(plan.model, plan.device, plan.batches, plan.precision) as buffers:
        for chunk in plan.chunks():
            own = identify(chunk)
            keys, n, sign_n = np.concatenate([keys, own]), len(own), signs_of(own)
            signs = Signs.of(sign_n, plan.device)
            state, first = random_state(plan.device), Gradients()
            visits = [_Accumulate(plan, mine, signs, budget, (k, count), first) for k, mine in enumerate(moments)]
            visits[0].held = first
            found = plan.gradients(chunk, visits)
            latest = [(losses, visit.q) for losses, visit in zip(found, visits, strict=True)]
            for k, (losses, visit, mine) in enumerate(zip(found, visits, moments, strict=True)):
                mine.append(visit.q, visit.draw_q, sign_n, losses)
                _check_finite(mine, n)
                _spot_check(plan, k, chunk, len(chunks), losses, visit.q)
                if k:
                    x_parts[k].append(by_group(visit.x, plan.labels))
            chunks.append([visit.held for visit in visits] if budget.close() else state)
        for k, (losses, q) in enumerate(latest):
            if len(chunks) == 1:
                _spot_check(plan, k, chunk, 1, losses, q)
            require_steady_buffers(plan.model, plan.losses.alone(k), chunk, buffers)
    x = [{group: np.concatenate([part[group] for part in parts] or [np.empty(0)]) for group in moments[0].q} for parts in x_parts[1:]]
    return FirstPass(moments, keys, x, chunks)


@dataclass
class _Multiply:
    """Visits the gradients of one chunk and loss: products with its own S, with those of the losses it is compared with, and of the samples
    `taken` with its own D."""

    plan: Plan
    mine: Moments
    others: list[Moments]
    taken: NDArray[np.bool_]
    r: dict[str, Tensor] = field(default_factory=dict)
    e: dict[str, Tensor] = field(default_factory=dict)
    other: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = torch.from_numpy(np.flatnonzero(self.taken)).to(self.plan.device)
        self.other = [{} for _ in self.others]

    def __call__(self, name: str, gradients: PerSample) -> None:
        with exact(self.plan.device):
            sums = [theirs.total(name) for theirs in (self.mine, *self.others)]
            if len(self.rows) >= len(self.taken) / MANY_TAKEN:  # at once: forming a gradient serves all its products
                *products, with_difference = gradients.products([*sums, self.mine.difference(name)])
                self.e[name] = with_difference[self.rows]
            else:
                products = list(gradients.products(sums))
                if len(self.rows):
                    self.e[name] = gradients.take(self.rows).dots(self.mine.difference(name))
            for of, values in zip((self.r, *self.other), products, strict=True):
                of[name] = values

    def parts(self) -> Products:
        r = by_group(self.r, self.plan.labels)
        e = {group: np.full_like(value, np.nan) for group, value in r.items()}
        for group, value in by_group(self.e, self.plan.labels).items() if self.e else ():
            e[group][self.taken] = value
        return Products(r, e, [by_group(of, self.plan.labels) for of in self.other])


def second_look(plan: Plan, first: FirstPass, taken: NDArray[np.bool_]) -> tuple[Products, ...]:
    """Products with the sums in `first.moments` (by now those of all ranks); taken: (n,), whose with D too. Raises ValueError where a chunk
    that is run again has other losses."""
    parts: list[list[Products]] = [[] for _ in first.moments]
    done = 0
    all_kept = all(isinstance(chunk, list) for chunk in first.chunks)
    with undisturbed(plan.model, plan.device, plan.batches, plan.precision):
        batches = itertools.repeat(None, len(first.chunks)) if all_kept else plan.chunks()
        for chunk, batch in itertools.zip_longest(first.chunks, batches):
            if chunk is None or (batch is None and not all_kept):
                raise ValueError(CHANGED)
            if not isinstance(chunk, list):
                set_random_state(chunk, plan.device)
            n = next(iter(chunk[0].values())).samples if isinstance(chunk, list) else batch_size(batch) // plan.draws
            if done + n > len(taken):
                raise ValueError(CHANGED)
            own, rest = first.moments[0], list(first.moments[1:])
            visits = [_Multiply(plan, mine, rest if mine is own else [own], taken[done : done + n]) for mine in first.moments]
            if isinstance(chunk, list):
                for visit, kept in zip(visits, chunk, strict=True):
                    for name, gradients in kept.items():
                        visit(name, gradients)
            else:
                assert batch is not None
                found = plan.gradients(batch, [_prepared(plan, visit) for visit in visits])
                for losses, mine in zip(found, first.moments, strict=True):
                    _check_same(losses.double().cpu().numpy().reshape(-1, plan.draws).mean(1), mine.losses[done : done + n])
            for part, visit in zip(parts, visits, strict=True):
                part.append(visit.parts())
            done += n
    groups, count = list(first.moments[0].q), len(parts)
    return tuple(_joined(part, groups, 1 if k else count - 1) for k, part in enumerate(parts))


def _prepared(plan: Plan, visit: Visit) -> Visit:
    """Gradients as `_Accumulate` takes them: in float64 where asked for, the draws of a sample pooled."""

    def prepared(name: str, gradients: PerSample) -> None:
        gradients = gradients.double() if plan.double else gradients
        visit(name, gradients.pooled(plan.draws) if plan.draws > 1 else gradients)

    return prepared


def _joined(parts: list[Products], groups: list[str], others: int) -> Products:
    def column(values: list[dict[str, Array]]) -> dict[str, Array]:
        return {group: np.concatenate([value[group] for value in values] or [np.empty(0)]) for group in groups}

    return Products(column([p.r for p in parts]), column([p.e for p in parts]), [column([p.others[j] for p in parts]) for j in range(others)])


def _check_same(losses: Array, before: Array) -> None:
    """r_i and q_i must be of the same sample."""
    scale = np.abs(before).max(initial=0.0)
    if not np.allclose(losses, before, rtol=1e-3, atol=1e-6 * scale):
        raise ValueError(CHANGED)
