"""`gsnr.measure` and `gsnr.compare`: per-sample gradients -> moments -> estimates with intervals, for any model and any per-sample loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor, nn

from gsnr import ranks
from gsnr.batches import Batch
from gsnr.comparison import Comparison
from gsnr.engines import Common, Loss, Losses
from gsnr.identity import Index
from gsnr.moments import Moments
from gsnr.passes import Plan, Products
from gsnr.results import ComparisonResult, Result
from gsnr.running import Passes, make_plan, run
from gsnr.selection import Groups, Parameters
from gsnr.surroundings import FLOAT32


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
    memory_bytes    what per-sample gradients may take; default a quarter: of a GPU's free memory, of all that a CPU has.
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
    plan = ranks.together(lambda: make_plan(model, Losses((loss,)), batches, *options), distributed)
    (moments,), _, (look,), used = run(plan, engine, interval, distributed)
    return _result(moments, look, used)


def _compared(found_of_all: Passes, names: Sequence[str]) -> dict[str, ComparisonResult]:
    """By name, each of the losses after the first, compared with the first."""
    (of_b, *moments), x, (look_b, *looks), used = found_of_all
    assert look_b is not None
    b, found = _result(of_b, look_b, used), {}
    for k, name in enumerate(names):
        look = looks[k]
        assert look is not None
        a, sum_ab = _result(moments[k], look, used), moments[k].product(of_b)
        found[name] = ComparisonResult(
            a=a,
            b=b,
            comparisons={
                group: Comparison(
                    a=a[group],
                    b=b[group],
                    x_n=x[k][group],
                    a_sum_b_n=look.others[0][group],
                    b_sum_a_n=look_b.others[k][group],
                    sum_ab=sum_ab[group],
                )
                for group in a.groups
            },
        )
    return found


def _rounds(plan: Plan, names: Sequence[str]) -> Iterator[tuple[Plan, Sequence[str]]]:
    """As many losses at a time as have room for their sums in `memory_bytes`, the first of all in each round."""
    size = sum(2 * p.numel() * max(4, p.element_size()) for p in plan.selected.values())
    at_once = max(1, plan.memory_bytes // max(1, size) - 1)
    first, *others = plan.losses.each
    for i in range(0, len(names), at_once):
        part = slice(i, i + at_once)
        yield replace(plan, losses=replace(plan.losses, each=(first, *others[part]))), names[part]


@overload
def compare(
    model: nn.Module,
    loss_a: Mapping[str, Callable[..., Tensor]],
    loss_b: Callable[..., Tensor],
    batches: Iterable[Batch],
    engine: str = "auto",
    parameters: Parameters | None = None,
    groups: Groups | None = None,
    *,
    common: Common | None = None,
    draws: int = 1,
    chunk: int | None = None,
    memory_bytes: int | None = None,
    device: str | torch.device | None = None,
    distributed: bool = True,
    index: Index | None = None,
    precision: str = FLOAT32,
) -> dict[str, ComparisonResult]: ...


@overload
def compare(
    model: nn.Module,
    loss_a: Callable[..., Tensor],
    loss_b: Callable[..., Tensor],
    batches: Iterable[Batch],
    engine: str = "auto",
    parameters: Parameters | None = None,
    groups: Groups | None = None,
    *,
    common: Common | None = None,
    draws: int = 1,
    chunk: int | None = None,
    memory_bytes: int | None = None,
    device: str | torch.device | None = None,
    distributed: bool = True,
    index: Index | None = None,
    precision: str = FLOAT32,
) -> ComparisonResult: ...


def compare(
    model: nn.Module,
    loss_a: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]],
    loss_b: Callable[..., Tensor],
    batches: Iterable[Batch],
    engine: str = "auto",
    parameters: Parameters | None = None,
    groups: Groups | None = None,
    *,
    common: Common | None = None,
    draws: int = 1,
    chunk: int | None = None,
    memory_bytes: int | None = None,
    device: str | torch.device | None = None,
    distributed: bool = True,
    index: Index | None = None,
    precision: str = FLOAT32,
) -> ComparisonResult | dict[str, ComparisonResult]:
    """Measures two losses on identical samples: each one's G-SNR, the cosine of their mean gradients, and their paired difference.

    Arguments and errors as in `measure`. `result["all"].cosine` is unbiased in each product and never clipped, with an interval and
    a flag `resolved`; `.constructive` is the part of loss a's G-SNR that also descends loss b. See `gsnr.comparison`.

    loss_a      one loss, or several by name: each is compared with loss_b, whose gradients are taken once, and the answer is a dict by name.
                As many as have room for their sums in `memory_bytes` are measured at a time, loss_b anew each time; sums of those that are
                done are moved to the CPU.
    common      what all losses start from, common(model, batch): hidden states, say. Each loss is then called as loss(model, batch, common(model,
                batch)). The ghost engine computes it once a batch for all losses; the others once for each.
    """
    firsts = dict(loss_a) if isinstance(loss_a, Mapping) else {"": loss_a}
    if not firsts:
        raise ValueError("loss_a: no loss to compare; name -> loss")
    options = (engine, parameters, groups, draws, chunk, memory_bytes, device, index, precision)
    losses = Losses((loss_b, *firsts.values()), common)
    plan = ranks.together(lambda: make_plan(model, losses, batches, *options), distributed)
    found: dict[str, ComparisonResult] = {}
    for part, names in _rounds(plan, list(firsts)):
        for before in found.values():
            before.a.moments.to_host()
            before.b.moments.to_host()
        found |= _compared(run(part, engine, True, distributed), names)
    return found if isinstance(loss_a, Mapping) else found[""]
