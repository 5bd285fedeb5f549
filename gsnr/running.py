"""From the arguments of `gsnr.measure` and `gsnr.compare` to what both passes found: the engine chosen, memory, ranks, float64 where it is needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from gsnr import ranks
from gsnr.batches import Batch, batch_size, device_named
from gsnr.coupling import require_no_batch_norm_in_training
from gsnr.engines import AUTO, Losses, NotCovered, default_memory, find
from gsnr.estimates import Array
from gsnr.hashing import smallest
from gsnr.identity import Index
from gsnr.moments import ALL, Moments
from gsnr.passes import COV_SAMPLES, FirstPass, Plan, Products, first_pass, second_look
from gsnr.selection import Groups, Parameters, check_kinds, label, select
from gsnr.surroundings import ALSO, PRECISIONS, undisturbed


def make_plan(
    model: nn.Module,
    losses: Losses,
    batches: Iterable[Batch],
    engine: str,
    parameters: Parameters | None,
    groups: Groups | None,
    draws: int,
    chunk: int | None,
    memory_bytes: int | None,
    device: str | torch.device | None,
    index: Index | None,
    precision: str,
) -> Plan:
    """Checks the arguments and puts them together, for the first engine to try."""
    if engine != "auto":
        find(engine)
    for value, name, least in ((draws, "draws", 1), (chunk, "chunk", 1), (memory_bytes, "memory_bytes", 0)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    check_kinds(parameters, groups)
    precision = ALSO.get(precision, precision)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} does not exist; choose from {', '.join(PRECISIONS)}")
    functions = [("loss", loss) for loss in losses.each] + ([] if losses.common is None else [("common", losses.common)])
    for name, given in functions:
        if not callable(given):
            raise ValueError(f"{name} must be a function, not {type(given).__name__}")
    if not (index is None or isinstance(index, str) or callable(index)):
        raise ValueError(f"index must be the name of a batch entry or a function batch -> (B,) integers, not {type(index).__name__}")
    if isinstance(batches, Mapping | torch.Tensor):
        raise ValueError(f"batches must be an iterable of batches, and this is one {type(batches).__name__}: pass [batch]")
    if not isinstance(model, nn.Module) or not isinstance(batches, Iterable):
        raise ValueError(f"measure(model, loss, batches): got {type(model).__name__}, {type(losses.each[0]).__name__}, {type(batches).__name__}")
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients cannot be measured under torch.inference_mode(); torch.no_grad() is fine")
    require_no_batch_norm_in_training(model)
    selected = select(model, parameters)
    return Plan(
        model=model,
        losses=losses,
        batches=list(batches) if isinstance(batches, Iterator) else batches,
        engine=find(AUTO[0] if engine == "auto" else engine),
        selected=selected,
        labels=label(list(selected), groups),
        draws=draws,
        samples=chunk,
        memory_bytes=default_memory(selected) if memory_bytes is None else memory_bytes,
        to=device_named(device),
        index=index,
        precision=precision,
    )


def _within_memory(plan: Plan, keep: bool) -> tuple[Plan, FirstPass]:
    """The first pass; where a GPU's memory does not hold a chunk, again with half as many samples in one. Raises torch.OutOfMemoryError where
    it does not hold one sample."""
    while True:
        try:
            return plan, first_pass(plan, keep=keep)
        except torch.OutOfMemoryError as error:
            lacking = error.with_traceback(None)  # its frames hold what memory there is
        torch.cuda.empty_cache()
        with undisturbed(plan.model, plan.device, plan.batches):
            size = (plan.chunk_rows or batch_size(next(replace(plan, to=None).chunks()))) // plan.draws
        if size == 1:
            raise lacking
        plan = replace(plan, samples=size // 2)
        warnings.warn(f"{size} samples at once are too many for the memory of {plan.device}; with {size // 2} now (chunk={size // 2})", stacklevel=8)


def _first_pass(plan: Plan, engine: str, keep: bool) -> tuple[Plan, FirstPass, str]:
    """The first pass by the engine asked for; "auto": by the first in AUTO that fits, with a warning where that is not the first of all."""
    refusals: list[str] = []
    for name in AUTO if engine == "auto" else (engine,):
        plan = replace(plan, engine=find(name))
        try:
            plan, found = _within_memory(plan, keep)
        except NotCovered as error:
            if engine != "auto":
                raise ValueError(f"engine {name!r}: {error}; try another engine, or leave it out with parameters=") from error
            refusals.append(f"{name!r}: {error}")
            continue
        except RuntimeError as error:  # functorch's and autograd's ways of saying that they cannot do this model
            if engine != "auto" or name == AUTO[-1] or isinstance(error, torch.OutOfMemoryError):
                raise
            refusals.append(f"{name!r}: {str(error).splitlines()[0]}")
            continue
        if refusals:
            warnings.warn(f"engine {name!r}, which is slower, because {'; '.join(refusals)}", stacklevel=7)
        return plan, found, name
    raise ValueError(f"no engine can measure this model ({'; '.join(refusals)})")


Passes = tuple[tuple[Moments, ...], list[dict[str, Array]], tuple[Products | None, ...], str]


def run(plan: Plan, engine: str, interval: bool, distributed: bool) -> Passes:
    """Both passes, over all ranks, and the name of the engine; again in float64 where float32 would lose the answer."""
    found = _passes(plan, engine, interval, distributed)
    why = [reason for moments in found[0] if (reason := moments.beyond_float32()) is not None]
    if ranks.join({"": np.array([bool(why)])}, distributed)[""].any():  # all ranks or none
        warnings.warn(f"measured again in float64, which is slower; {next(iter(why), 'another rank asks for it')}", stacklevel=3)
        used = found[3]
        del found
        found = _passes(replace(plan, double=True), used, interval, distributed)
    for moments in found[0]:
        if not moments.q[ALL].any():
            n = moments.n
            warnings.warn(f"all {n} gradients are exactly zero, so the result is NaN: is the loss detached, or the output gated by 0?", stacklevel=3)
    return found


def _passes(plan: Plan, engine: str, interval: bool, distributed: bool) -> Passes:
    plan, first, used = ranks.together(lambda: _first_pass(plan, engine, interval), distributed)
    for mine in first.moments:
        _add_over_ranks(mine, distributed)
    looks: tuple[Products | None, ...] = (None,) * len(first.moments)
    if interval:
        taken = first.keys <= smallest(ranks.join({"": first.keys}, distributed)[""], COV_SAMPLES)
        products = ranks.together(lambda: second_look(plan, first, taken), distributed)
        join = lambda part: ranks.join(part, distributed)
        looks = tuple(Products(join(p.r), join(p.e), [join(other) for other in p.others]) for p in products)
    moments = tuple(
        replace(
            mine,
            q=ranks.join(mine.q, distributed),
            draw_q=ranks.join(mine.draw_q, distributed),
            signs=ranks.join({"": mine.signs}, distributed)[""],
            losses=ranks.join({"": mine.losses}, distributed)[""],
        )
        for mine in first.moments
    )
    n = moments[0].n
    if n < 2:
        raise ValueError(f"{n} samples: the variance of a gradient needs at least 2")
    return moments, [ranks.join(x, distributed) for x in first.x], looks, used


def _add_over_ranks(moments: Moments, distributed: bool) -> None:
    """A sum is added where any rank has one."""
    reached = ranks.join({name: np.array([moments.reached(name)]) for name in moments.plus}, distributed)
    names = [name for name, by_rank in reached.items() if by_rank.any()]
    for name in names:
        moments.reach(name)
    ranks.add([half[name] for half in (moments.plus, moments.minus) for name in names], distributed)
