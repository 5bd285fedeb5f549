"""`ghost`: exact per-sample gradients, as factors, from one ordinary forward and backward.

While the loss is computed, every torch function that is given a selected parameter is intercepted. If there is a rule for it, it runs on the
detached parameter (so that autograd computes no weight gradient), and a tap on its output hands the output's gradient, with the input
that autograd would have kept as well, to the rule, which makes the parameter's per-sample gradients of the two. Whatever else happens to a
parameter is an edge to it in autograd's graph: an error that names the parameter, so none is ever left out.

No module is hooked, so functional code, modules called twice, tied parameters, autocast, train mode and activation checkpointing
(use_reentrant=False) need no special care. What parameters make alone, for all samples (positions, class tokens), is followed to where it meets
the samples (`gsnr.engines.shared`). Samples must lie first in every input: [N, ...], or folded with others as in [N*T, D], N slowest.
Shapes do not prove that they do; `gsnr.coupling.spot_check` tries single samples while measuring (`verify` where the loss is random).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gsnr.batches import Batch, batch_size, each, take_apart
from gsnr.engines import Loss, Losses, NotCovered, Visit, check_losses
from gsnr.engines.rules import RULES, Rule
from gsnr.engines.shared import Shared, step, tensors
from gsnr.gradients import PerSample, Sum, Zero

HINTS = {
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum"), "write it as F.linear(x, weight)"),
    "multi_head_attention_forward": "give q, k and v an nn.Linear each, and use F.scaled_dot_product_attention",
    **dict.fromkeys(("cat", "concat", "stack", "where"), "give every sample its own first: p.expand(B, ...)"),
    "__getitem__": "look rows up by F.embedding(index, table)",
}
COVERED = "ghost knows linear, convolution, embedding and norm layers, x + p, x * p and p.expand(B, ...)"
SHAPES = "samples must lie first in a layer's input, and what all samples share needs a first dimension of 1"


class _Tap(torch.autograd.Function):
    """The identity, which hands its gradient to `rule`. `anchor` is a leaf whose gradient is asked for, so that backward comes by."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, rule: Callable[..., None], saved: Tensor | None, in_place: bool) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(saved)
        if in_place:
            ctx.mark_dirty(y)
            return y
        return y.detach()  # not y itself: the caller may change its output in place

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        ctx.rule(outputs[0], *ctx.saved_tensors)
        return outputs[0], None, None, None, None


class _Capture(TorchFunctionMode):
    """Intercepts the uses of selected parameters, counts them, and collects what the rules make of them."""

    def __init__(self, selected: dict[str, nn.Parameter], batch: Batch, visit: Visit) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in selected.items()}
        self.sources = {id(p): Shared.parameter(name, p) for name, p in selected.items()}  # and what they make alone, by id as well
        self.samples, self.visit = batch_size(batch), visit
        self.storages = {x.untyped_storage().data_ptr() for x in take_apart(batch)[0]}
        self.anchor = torch.zeros((), requires_grad=True)
        self.forward_runs = True  # false during backward, when activation checkpointing runs parts of it again
        self.uses: Counter[str] = Counter()
        self.uses_in_common: Counter[str] = Counter()
        self.found: dict[str, list[PerSample]] = {}
        self.without_rule: dict[str, str] = {}
        self.without_gradient: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        used = [source for x in tensors(args, kwargs) if (source := self.sources.get(id(x))) is not None]
        if not used or not torch.is_grad_enabled():
            if self.forward_runs:
                self.without_gradient.update(name for source in used for name in source.roots)
            return func(*args, **kwargs)
        try:
            return self._tapped(self._rule(func, args, kwargs))
        except NotCovered as error:
            return self._untapped(func, args, kwargs, used, str(error))

    def _untapped(self, func: Any, args: Any, kwargs: Any, used: list[Shared], reason: str) -> Any:
        """Runs what has no rule: a step towards one, or harmless unless it reaches the loss, which autograd's graph will tell."""
        result = func(*args, **kwargs)
        if any(result is source.tensor and source.is_as_made for source in used):
            return result  # nothing was to be done, as for x.to(x.device)
        made = step(func, args, kwargs, result, used)
        if made is not None:
            self.sources |= {id(made.tensor): made, id(made.stand_in): made}
        elif result is None or any(isinstance(x, Tensor) and x.requires_grad for x in (result if isinstance(result, tuple) else (result,))):
            for name in (name for source in used for name in source.roots):
                self.without_rule.setdefault(name, reason)
        return result

    def _split(self, x: Tensor) -> Tensor:
        """(N m, ...) -> (N, m, ...) of N samples."""
        return x.unflatten(0, (self.samples, -1))

    def _rule(self, func: Any, args: Any, kwargs: Any) -> Rule:
        name = getattr(func, "__name__", str(func))
        if func not in RULES:
            raise NotCovered(f"{name}; {HINTS.get(name, COVERED)}")
        if not all(self.sources[id(x)].is_as_made for x in tensors(args, kwargs) if id(x) in self.sources):
            raise NotCovered(f"{name}, after it was changed in place")
        stand_in = lambda x: self.sources[id(x)].stand_in if id(x) in self.sources else x
        rule = RULES[func](tuple(map(stand_in, args)), {key: stand_in(x) for key, x in kwargs.items()}, self._split)
        if id(rule.input) in self.sources:
            raise NotCovered(f"{name}, as its input; {COVERED}")
        if rule.input.shape[0] % self.samples or (func is F.embedding and self._for_all(rule.input)):
            raise NotCovered(f"{name} on an input of shape {tuple(rule.input.shape)}: {self.samples} samples do not lie first; {SHAPES}")
        if not rule.takes_shared and any(id(p) in self.sources and not self.sources[id(p)].is_parameter for p in rule.parameters.values()):
            raise NotCovered(f"{name}, whose weight is computed from it; {COVERED}")
        return rule

    def _for_all(self, index: Tensor) -> bool:
        """Whether an index is one for all samples, even where its length is a multiple of B: no part of the batch, and a list that counts
        upwards (positions) or a table (relative positions)."""
        if self.samples == 1 or index.untyped_storage().data_ptr() in self.storages:
            return False
        if index.ndim > 1:
            return index.shape[0] != self.samples
        return len(index) > 1 and bool((index.diff() == 1).all())

    def _tapped(self, call: Rule) -> Tensor:
        parameters = {slot: p for slot, p in call.parameters.items() if id(p) in self.sources}
        if self.forward_runs:
            self.uses.update(name for p in parameters.values() for name in self.sources[id(p)].roots)
        y = call.run({slot: p.detach() if slot in parameters else p for slot, p in call.parameters.items()})
        saved = None if set(parameters) <= call.without_input else call.input.detach()
        if saved is not None and saved.is_floating_point() and saved.dtype != y.dtype:
            saved = saved.to(y.dtype)  # what autocast computed with, and half the memory

        call.arguments.pop("input", None)  # kept by the tap alone, so that it is freed when autograd frees it, and not at all in a checkpoint
        made = call.gradients

        def rule(gy: Tensor, saved: Tensor | None) -> None:
            if self.forward_runs:
                raise NotCovered("the loss takes gradients itself, through the parameters' layers")
            with torch._C.DisableTorchFunction():  # of what rules and estimators compute nothing is to be intercepted
                for slot, gradients in made(gy, saved, tuple(parameters)):
                    source = self.sources[id(parameters[slot])]
                    if source.is_parameter:
                        self._collect(self.names[id(source.tensor)], gradients)
                        continue
                    for name, own in source.back(gradients.dense()):
                        self._collect(name, own)

        return _Tap.apply(y, self.anchor, rule, saved, call.in_place)

    def _collect(self, name: str, gradients: PerSample) -> None:
        """Passes a parameter's gradients on as soon as all its uses have reported, so that their factors can be freed."""
        parts = self.found.setdefault(name, [])
        parts.append(gradients)
        if len(parts) == self.uses[name]:
            self.visit(name, _together(parts))
            self.found[name] = []
            self.uses[name] = -1

    def end_common(self) -> None:
        """What was run up to here belongs to every loss that follows."""
        self.uses_in_common = self.uses.copy()

    def begin(self, visit: Visit) -> None:
        """Another loss."""
        self.visit, self.uses, self.found, self.forward_runs = visit, self.uses_in_common.copy(), {}, True

    def finish(self, selected: dict[str, nn.Parameter]) -> None:
        """Visits the parameters that some or all of whose uses do not reach the loss."""
        with torch._C.DisableTorchFunction():
            for name, p in selected.items():
                parts = self.found.get(name, [])
                if self.uses[name] != -1:
                    self.visit(name, _together(parts) if parts else Zero(self.samples, p))


def _together(parts: list[PerSample]) -> PerSample:
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


@contextmanager
def _on(capture: _Capture) -> Iterator[None]:
    with torch.enable_grad(), capture:
        yield


def _reached(capture: _Capture, scalar: Tensor) -> list[str]:
    """The selected parameters that autograd would compute a gradient for, or might: a custom function's backward can run code of its own."""
    seen, stack, found = {scalar.grad_fn}, [scalar.grad_fn], []
    while stack:
        node = stack.pop()
        if node is None:
            continue
        name = capture.names.get(id(getattr(node, "variable", None)))
        if name is not None:
            found.append(name)
        if isinstance(node, torch.autograd.function.BackwardCFunction) and not isinstance(node, _Tap._backward_cls):
            found += capture.without_gradient
        new = {following for following, _ in node.next_functions} - seen
        seen |= new
        stack.extend(new)
    return found


def _backward(capture: _Capture, scalar: Tensor, again: bool = False) -> None:
    """Runs the rules. again: the graph is kept for another loss. Raises NotCovered for a parameter that reached autograd."""
    if not scalar.requires_grad:
        return
    for name in _reached(capture, scalar):
        hidden = "code that hides its torch functions (compiled, scripted, a custom autograd.Function, checkpointing without use_reentrant=False)"
        raise NotCovered(f"parameter {name!r} is used by {capture.without_rule.get(name, hidden)}")
    capture.forward_runs = False
    # torch.autograd.backward would suspend the mode, which activation checkpointing needs when it runs the forward again
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((scalar,), (torch.ones_like(scalar),), again, False, (capture.anchor,), allow_unreachable=True, accumulate_grad=True)


def several(model: nn.Module, losses: Losses, batch: Batch, selected: dict[str, nn.Parameter], visits: Sequence[Visit]) -> list[Tensor]:
    """`per_sample` of several losses: one forward of their common part for all, and one backward for each, in their order."""
    for name, p in selected.items():
        if p._backward_hooks:
            raise NotCovered(f"parameter {name!r} has a gradient hook, which needs its whole gradient")
    capture, found = _Capture(selected, batch, visits[0]), []
    with _on(capture):
        common = () if losses.common is None else (losses.common(model, batch),)
        capture.end_common()
        for k, (loss, visit) in enumerate(zip(losses.each, visits, strict=True)):
            capture.begin(visit)
            values = check_losses(loss(model, batch, *common), capture.samples)
            _backward(capture, values.sum(), again=bool(common) and k + 1 < len(visits))
            capture.finish(selected)
            found.append(values.detach())
    return found


def per_sample(model: nn.Module, loss: Loss, batch: Batch, selected: dict[str, nn.Parameter], visit: Visit) -> Tensor:
    """See `gsnr.engines`. Raises NotCovered, naming the parameter, where a rule is missing."""
    return several(model, Losses((loss,)), batch, selected, (visit,))[0]


def verify(model: nn.Module, loss: Loss, batch: Batch, selected: dict[str, nn.Parameter]) -> None:
    """For a loss that draws random numbers, which one sample alone cannot be compared with: on the first and the last row of a batch, the
    gradient of either's loss must vanish in every parameter's gradient of the other. Raises NotCovered where it does not."""
    b = batch_size(batch)
    for own, other in ((0, 1), (1, 0)) if b > 1 else ():

        def is_zero(name: str, gradients: PerSample, other: int = other) -> None:
            if not gradients.vanishes(other):
                raise NotCovered(f"parameter {name!r}: samples do not lie first in its input, or one sample's loss depends on another sample")

        pair = each(batch, lambda x: x[[0, b - 1]])
        capture = _Capture(selected, pair, is_zero)
        with _on(capture):
            losses = check_losses(loss(model, pair), 2)
            _backward(capture, losses[own])
        capture.finish(selected)
