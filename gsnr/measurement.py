"""`gsnr.measure` and `gsnr.compare`: per-sample gradients -> moments -> estimates with intervals, for any model and any per-sample loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from gsnr import ranks
from gsnr.batches import Batch, batch_size, device_named
from gsnr.comparison import Comparison
from gsnr.coupling import require_no_batch_norm_in_training
from gsnr.engines import AUTO, Loss, NotCovered, default_memory, find
from gsnr.estimates import Array
from gsnr.hashing import smallest
from gsnr.identity import Index
from gsnr.moments import ALL, Moments
from gsnr.passes import COV_SAMPLES, FirstPass, Plan, Products, first_pass, second_look
from gsnr.results import ComparisonResult, Result
from gsnr.selection import Groups, Parameters, check_kinds, label, select
from gsnr.surroundings import ALSO, FLOAT32, PRECISIONS, undisturbed


def _plan(
    model: nn.Module,
    losses: tuple[Loss, ...],
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
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    check_kinds(parameters, groups)
    precision = ALSO.get(precision, precision)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} does not exist; choose from {', '.join(PRECISIONS)}")
    for loss in losses:
        if not callable(loss):
            raise ValueError(f"loss must be a function, not {type(loss).__name__}")
    if not (index is None or isinstance(index, str) or callable(index)):
        raise ValueError(f"index must be the name of a batch entry or a function batch -> (B,) integers, not {type(index).__name__}")
    if isinstance(batches, Mapping | torch.Tensor):
        raise ValueError(f"batches must be an iterable of batches, and this is one {type(batches).__name__}: pass [batch]")
    if not isinstance(model, nn.Module) or not isinstance(batches, Iterable):
        raise ValueError(f"measure(model, loss, batches): got {type(model).__name__}, {type(losses[0]).__name__}, {type(batches).__name__}")
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


Passes = tuple[tuple[Moments, ...], dict[str, Array], tuple[Products | None, ...], str]


def _run(plan: Plan, engine: str, interval: bool, distributed: bool) -> Passes:
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
        ranks.add([*mine.plus.values(), *mine.minus.values()], distributed)
    looks: tuple[Products | None, ...] = (None,) * len(plan.losses)
    if interval:
        taken = first.keys <= smallest(ranks.join({"": first.keys}, distributed)[""], COV_SAMPLES)
        products = ranks.together(lambda: second_look(plan, first, taken), distributed)
        looks = tuple(Products(*(ranks.join(part, distributed) for part in (p.r, p.other, p.e))) for p in products)
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
    return moments, ranks.join(first.x, distributed), looks, used


def _result(moments: Moments, look: Products | None, engine: str) -> Result:
    estimates = moments.estimates(None, None) if look is None else moments.estimates(look.r, look.e)
    return Result(moments=moments, estimates=estimates, engine=engine)


def measure(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    engine: str = "auto",
    parameters: Parameters | None = None,
    groups: Groups | None = None,
    *,
    interval: bool = True,
    draws: int = 1,
    chunk: int | None = None,
    memory_bytes: int | None = None,
    device: str | torch.device | None = None,
    distributed: bool = True,
    index: Index | None = None,
    precision: str = FLOAT32,
) -> Result:
    """Measures the gradient signal-to-noise ratio of a per-sample loss over independent samples.

    model       any module; its mode (train or eval), gradients and random state are left as they are.
    loss        loss(model, batch) -> (B,) one value per sample, any scale, no coupling across samples; must accept B = 1.
    batches     iterable of batches: a dict, tuple, list or any pytree of tensors, every tensor with leading dimension B; what is no
                tensor is passed on as it is. Gone through twice where what the interval needs does not fit `memory_bytes` (what
                does not fit is computed again), so the order must stay. A shuffling DataLoader is safe: both passes start from the
                same random state, torch's and that of the generators of loader and sampler, which are put back at the end. Other sources
                of randomness (numpy's, a file that changes) are refused if they change the order. An iterator is made a list first.
    engine      "auto" | "loop" | "vmap" | "ghost"; "auto" is "ghost" where that covers every selected parameter, otherwise "vmap",
                otherwise "loop", with a warning that says why. Single samples are checked against one plain backward while
                measuring: one of each of the chunks 0, 1, 7, 31, 127, ... ("loop": of chunk 0 only), and a second one where
                there is one chunk only; unless the loss draws random numbers.
    parameters  which: a function of the name, a name or glob ("blocks.*.attn.*"; * also matches dots), or a list. Default: all that require grad.
    groups      parameter name -> label or labels, or a mapping label -> glob or list of globs; "all" is always there.
    interval    also compute r_i = g_i . S, which the jackknife interval needs, and tr(Cov^2), which the detection limit needs.
    draws       rows of a batch that belong to one sample and follow one another (draws of t and noise for one image): g_i is
                their mean gradient, n counts samples, and the noise is split into a part between and a part within samples.
    chunk       samples whose gradients are taken at once; default: from `memory_bytes`, or whole batches ("ghost"); halved until the first pass fits.
    memory_bytes    what per-sample gradients may take; default an eighth of a CPU's memory, a quarter of the free memory of a GPU.
    device      where batches are moved before they are used (the model stays); default: nowhere.
    distributed     where torch.distributed is initialised, every rank brings batches of its own, and all get the result of all; False: this alone.
    index       who a sample is: the name of a batch entry, or a function batch -> (B,) integers, with its number in the data (one for all
                its draws). tr(Cov^2), and by it interval, effective dimension and cautions, gives each sample a sign and takes some samples'
                products with the sum of all so signed; both follow from a hash of that number, so the same samples give the same result in any
                order, batch, chunk and rank, up to rounding. Default: a hash of the sample's content, the bits of its rows in every tensor.
                Then the same numbers in another dtype, or padded to another length, are another sample, and copies of a sample are told
                apart on one rank only. `gsnr.pool` needs the number.
    precision   of the model's passes: "float32" ("fp32"), "tf32" (a GPU's) or "bfloat16" ("bf16", autocast); docs/gpu.md has the errors of each.

    Where float32 would lose the answer (a gsnr above 1e4, square norms outside 1e-30 to 1e30), everything is measured again with the
    gradients in float64, with a warning; the sums of the result are float64 then.

    Raises ValueError for an unknown engine, coupled samples (batch norm in train mode, contrastive losses), a forward that changes a
    buffer which the loss depends on, complex and float8 parameters, an empty selection, a glob that matches nothing, n < 2, a loss of
    another shape, gradients that are not finite, batches that come in another order the second time, an index that is no entry of the
    batch, no (B,) whole numbers, or not one number for a sample's draws.
    Source: AHPA (Eq. 1, Eq. 6, Appendix E.1); estimators as in `gsnr.estimates`.
    """
    options = (engine, parameters, groups, draws, chunk, memory_bytes, device, index, precision)
    plan = ranks.together(lambda: _plan(model, (loss,), batches, *options), distributed)
    (moments,), _, (look,), used = _run(plan, engine, interval, distributed)
    return _result(moments, look, used)


def compare(
    model: nn.Module,
    loss_a: Loss,
    loss_b: Loss,
    batches: Iterable[Batch],
    engine: str = "auto",
    parameters: Parameters | None = None,
    groups: Groups | None = None,
    *,
    draws: int = 1,
    chunk: int | None = None,
    memory_bytes: int | None = None,
    device: str | torch.device | None = None,
    distributed: bool = True,
    index: Index | None = None,
    precision: str = FLOAT32,
) -> ComparisonResult:
    """Measures two losses on identical samples: each one's G-SNR, the cosine of their mean gradients, and their paired difference.

    Arguments and errors as in `measure`. `result["all"].cosine` is unbiased in each product and never clipped, with an interval and
    a flag `resolved`; `.constructive` is the part of loss a's G-SNR that also descends loss b. See `gsnr.comparison`.
    """
    options = (engine, parameters, groups, draws, chunk, memory_bytes, device, index, precision)
    plan = ranks.together(lambda: _plan(model, (loss_a, loss_b), batches, *options), distributed)
    moments, x, looks, used = _run(plan, engine, True, distributed)
    a, b = (_result(m, look, used) for m, look in zip(moments, looks, strict=True))
    assert looks[0] is not None and looks[1] is not None
    sum_ab = moments[0].product(moments[1])
    comparisons = {
        group: Comparison(
            a=a[group], b=b[group], x_n=x[group], a_sum_b_n=looks[0].other[group], b_sum_a_n=looks[1].other[group], sum_ab=sum_ab[group]
        )
        for group in a.groups
    }
    return ComparisonResult(a=a, b=b, comparisons=comparisons)
