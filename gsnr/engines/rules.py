"""How the ghost engine differentiates each torch function with respect to its parameters: one rule a function.

A rule binds the function's arguments and says how to run it, which input to keep, and how the output's gradient and that input make the
per-sample gradients of each parameter. Legend: N samples, m others folded into the first dimension, p outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsnr.engines import NotCovered
from gsnr.gradients import Dense, Outer, Patches, PerSample, Rows, wide

Found = Iterator[tuple[str, PerSample]]
Split = Callable[[Tensor], Tensor]  # (N m, ...) -> (N, m, ...)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One call. `parameters`: slot -> tensor; `run` is given them detached; `gradients(gy, saved, slots)` yields (slot, gradients)."""

    parameters: dict[str, Tensor]
    input: Tensor  # its first dimension holds the samples; kept for `gradients`, as `saved`, unless no parameter at hand needs it
    run: Callable[[dict[str, Tensor]], Tensor]
    gradients: Callable[[Tensor, Tensor | None, tuple[str, ...]], Found]
    arguments: dict[str, Any] = field(default_factory=dict)  # of the call, as `gradients` sees them; "input" is taken out once it has run
    without_input: frozenset[str] = field(default_factory=frozenset)  # slots whose gradient needs the output's gradient alone
    takes_shared: bool = False  # whether a tensor made of parameters may take a parameter's place (`gsnr.engines.shared`)
    in_place: bool = False  # whether `run` returns its first argument, changed


BIAS = frozenset({"bias"})


def _bind(names: str, args: Any, kwargs: Any, **defaults: Any) -> dict[str, Any]:
    return defaults | dict(zip(names.split(), args, strict=False)) | kwargs


def _tensors(values: dict[str, Any], *slots: str) -> dict[str, Tensor]:
    return {slot: values[slot] for slot in slots if isinstance(values.get(slot), Tensor)}


def _per_channel(gy: Tensor, split: Split) -> Tensor:
    """(N m, ..., p) -> (N, p)."""
    return wide(split(gy)).flatten(1, -2).sum(1)


def _linear(args: Any, kwargs: Any, split: Split) -> Rule:
    v = _bind("input weight bias", args, kwargs, bias=None)
    if v["input"].ndim < 2:
        raise NotCovered("a linear layer was given one vector without a sample dimension")

    def gradients(gy: Tensor, x: Tensor | None, slots: tuple[str, ...]) -> Found:
        if "weight" in slots:
            assert x is not None
            a, b = (split(z).flatten(1, -2).unsqueeze(1) for z in (x, gy))
            yield "weight", Outer(a, b, v["weight"].shape)
        if "bias" in slots:
            yield "bias", Dense(_per_channel(gy, split))

    return Rule(
        parameters=_tensors(v, "weight", "bias"),
        arguments=v,
        input=v["input"],
        without_input=BIAS,
        run=lambda p: F.linear(v["input"], p["weight"], p.get("bias")),
        gradients=gradients,
    )


def _addmm(args: Any, kwargs: Any, split: Split) -> Rule:
    """bias + input @ weight: a linear layer with its weight the other way round (GPT-2's Conv1D)."""
    v = _bind("bias input weight", args, kwargs)
    if len(args) != 3 or kwargs:
        raise NotCovered("addmm with beta or alpha")

    def gradients(gy: Tensor, x: Tensor | None, slots: tuple[str, ...]) -> Found:
        if "weight" in slots:
            assert x is not None
            b, a = (split(z).flatten(1, -2).unsqueeze(1) for z in (x, gy))
            yield "weight", Outer(a, b, v["weight"].shape)
        if "bias" in slots:
            yield "bias", Dense(_per_channel(gy, split).reshape(-1, *v["bias"].shape))

    if v["bias"].shape[-1] != v["weight"].shape[1] or v["bias"].numel() != v["bias"].shape[-1]:
        raise NotCovered(f"addmm with a first argument of shape {tuple(v['bias'].shape)}")
    return Rule(
        parameters=_tensors(v, "weight", "bias"),
        arguments=v,
        input=v["input"],
        without_input=BIAS,
        run=lambda p: torch.addmm(p["bias"], v["input"], p["weight"]),
        gradients=gradients,
    )


def _pair(x: Any) -> tuple[int, int]:
    values = (x,) if isinstance(x, int) else tuple(x)
    return (int(values[0]), int(values[-1]))


def _padded(x: Tensor, padding: Any, kernel: torch.Size, dilation: tuple[int, int]) -> Tensor:
    """x with the zeros a convolution pads it with."""
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    h, w = (0, 0) if padding == "valid" else _pair(padding)
    return F.pad(x, (w, w, h, h)) if h or w else x


def _conv(function: Callable[..., Tensor], spatial: int) -> Callable[[Any, Any, Split], Rule]:
    def rule(args: Any, kwargs: Any, split: Split) -> Rule:
        v = _bind("input weight bias stride padding dilation groups", args, kwargs, bias=None, stride=1, padding=0, dilation=1, groups=1)
        if v["input"].ndim != spatial + 2:
            raise NotCovered("a convolution was given one image without a sample dimension")

        def gradients(gy: Tensor, x: Tensor | None, slots: tuple[str, ...]) -> Found:
            if "weight" in slots:
                assert x is not None
                image, b, w, padding = x, gy, v["weight"], v["padding"]
                stride, dilation = _pair(v["stride"]), _pair(v["dilation"])
                if spatial == 1:  # an image one pixel high
                    image, b, w = x.unsqueeze(2), gy.unsqueeze(2), v["weight"].unsqueeze(2)
                    stride, dilation = (1, stride[1]), (1, dilation[1])
                    padding = padding if isinstance(padding, str) else (0, _pair(padding)[1])
                image = _padded(image, padding, w.shape[2:], dilation)
                patches = Patches(split(image), split(b), w.shape, stride, dilation, v["groups"])
                yield "weight", patches if patches.overlap else patches.outer()
            if "bias" in slots:
                yield "bias", Dense(_per_channel(gy.movedim(1, -1), split))

        return Rule(
            parameters=_tensors(v, "weight", "bias"),
            arguments=v,
            input=v["input"],
            without_input=BIAS,
            run=lambda p: function(v["input"], p["weight"], p.get("bias"), v["stride"], v["padding"], v["dilation"], v["groups"]),
            gradients=gradients,
        )

    return rule


def bind_embedding(args: Any, kwargs: Any) -> dict[str, Any]:
    """Its arguments by name. Raises NotCovered for kinds whose gradients are not plain sums over rows."""
    names = "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse"
    v = _bind(names, args, kwargs, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False)
    if v["max_norm"] is not None or v["scale_grad_by_freq"]:
        raise NotCovered("an embedding with max_norm or scale_grad_by_freq")
    return v


def _embedding(args: Any, kwargs: Any, split: Split) -> Rule:
    v = bind_embedding(args, kwargs)

    def gradients(gy: Tensor, index: Tensor | None, slots: tuple[str, ...]) -> Found:
        assert index is not None
        if v["padding_idx"] is not None:
            gy = gy.masked_fill((index == v["padding_idx"] % len(v["weight"])).unsqueeze(-1), 0)
        yield "weight", Rows(split(index).flatten(1), split(gy).flatten(1, -2), v["weight"].shape)

    return Rule(
        parameters=_tensors(v, "weight"),
        arguments=v,
        input=v["input"],
        run=lambda p: F.embedding(v["input"], p["weight"], v["padding_idx"]),
        gradients=gradients,
    )


def _normalised(normalise: Callable[[Tensor], Tensor], channels_first: bool, split: Split, shape: torch.Size) -> Any:
    """Gradients of an affine norm, whose normalised input is computed again rather than kept."""

    def gradients(gy: Tensor, x: Tensor | None, slots: tuple[str, ...]) -> Found:
        def summed(z: Tensor) -> Tensor:
            z = split(z.movedim(1, -1) if channels_first else z)
            return z.flatten(1, -len(shape) - 1).sum(1)

        if "weight" in slots:
            assert x is not None
            yield "weight", Dense(summed(wide(gy) * normalise(wide(x))))
        if "bias" in slots:
            yield "bias", Dense(summed(wide(gy)))

    return gradients


def _layer_norm(args: Any, kwargs: Any, split: Split) -> Rule:
    v = _bind("input normalized_shape weight bias eps", args, kwargs, weight=None, bias=None, eps=1e-5)
    shape = torch.Size(v["normalized_shape"])
    return Rule(
        parameters=_tensors(v, "weight", "bias"),
        arguments=v,
        input=_with_others(v["input"], len(shape)),
        without_input=BIAS,
        run=lambda p: F.layer_norm(v["input"], shape, p.get("weight"), p.get("bias"), v["eps"]),
        gradients=_normalised(lambda x: F.layer_norm(x, shape, eps=v["eps"]), False, split, shape),
    )


def _rms_norm(args: Any, kwargs: Any, split: Split) -> Rule:
    v = _bind("input normalized_shape weight eps", args, kwargs, weight=None, eps=None)
    shape = torch.Size(v["normalized_shape"])
    eps = torch.finfo(v["input"].dtype).eps if v["eps"] is None else v["eps"]
    return Rule(
        parameters=_tensors(v, "weight"),
        arguments=v,
        input=_with_others(v["input"], len(shape)),
        run=lambda p: F.rms_norm(v["input"], shape, p.get("weight"), v["eps"]),
        gradients=_normalised(lambda x: F.rms_norm(x, shape, eps=eps), False, split, shape),
    )


def _group_norm(args: Any, kwargs: Any, split: Split) -> Rule:
    v = _bind("input num_groups weight bias eps", args, kwargs, weight=None, bias=None, eps=1e-5)
    return Rule(
        parameters=_tensors(v, "weight", "bias"),
        arguments=v,
        input=v["input"],
        without_input=BIAS,
        run=lambda p: F.group_norm(v["input"], v["num_groups"], p.get("weight"), p.get("bias"), v["eps"]),
        gradients=_normalised(lambda x: F.group_norm(x, v["num_groups"], eps=v["eps"]), True, split, torch.Size([v["input"].shape[1]])),
    )


def _batch_norm(args: Any, kwargs: Any, split: Split) -> Rule:
    names = "input running_mean running_var weight bias training momentum eps"
    v = _bind(names, args, kwargs, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5)
    if v["training"]:
        raise NotCovered("batch_norm in train mode, which couples samples")

    def normalise(x: Tensor) -> Tensor:
        return F.batch_norm(x, v["running_mean"].to(x.dtype), v["running_var"].to(x.dtype), eps=v["eps"])

    return Rule(
        parameters=_tensors(v, "weight", "bias"),
        arguments=v,
        input=v["input"],
        without_input=BIAS,
        run=lambda p: F.batch_norm(v["input"], v["running_mean"], v["running_var"], p.get("weight"), p.get("bias"), eps=v["eps"]),
        gradients=_normalised(normalise, True, split, torch.Size([v["input"].shape[1]])),
    )


def _with_others(x: Tensor, own: int) -> Tensor:
    if x.ndim <= own:
        raise NotCovered("a norm was given one sample without a sample dimension")
    return x


def _unbroadcast(g: Tensor, w: Tensor, split: Split) -> Dense:
    """Gradients (N, *shape) of w, from those of what it was broadcast to, (N m, ...)."""
    g = split(g)
    kept = w.ndim - (w.ndim == g.ndim - 1)  # trailing dimensions that are w's
    g = g.flatten(1, g.ndim - 1 - kept).sum(1)  # (N, *tail), where w is not broadcast
    over = [k for k, size in enumerate(w.shape[w.ndim - kept :], start=1) if size != g.shape[k]]
    return Dense((g.sum(over, keepdim=True) if over else g).reshape(len(g), *w.shape))


def _broadcast(function: Callable[[Tensor, Tensor], Tensor], product: bool, in_place: bool = False) -> Callable[[Any, Any, Split], Rule]:
    """x * weight and x + weight, the parameter broadcast over samples (LayerScale, hand-written norms, learned positions)."""

    def rule(args: Any, kwargs: Any, split: Split) -> Rule:
        if kwargs or len(args) != 2 or not all(isinstance(x, Tensor) for x in args):
            raise NotCovered(f"{function.__name__} with a number or a keyword")
        x, w = args if isinstance(args[1], torch.nn.Parameter) or in_place else args[::-1]
        if isinstance(x, torch.nn.Parameter) or x.ndim < max(w.ndim, 1) or (w.ndim == x.ndim and w.shape[0] != 1):
            raise NotCovered(f"{function.__name__} of shapes {tuple(x.shape)} and {tuple(w.shape)}")

        def gradients(gy: Tensor, x: Tensor | None, slots: tuple[str, ...]) -> Found:
            yield "weight", _unbroadcast(wide(gy) * wide(x) if x is not None else wide(gy), w, split)

        return Rule(
            parameters={"weight": w},
            input=x,
            without_input=frozenset() if product else frozenset({"weight"}),
            run=lambda p: function(x, p["weight"]),
            gradients=gradients,
            takes_shared=True,
            in_place=in_place,
        )

    return rule


def _expand(function: Callable[..., Tensor]) -> Callable[[Any, Any, Split], Rule]:
    """weight.expand(B, ...): every sample gets its own (class and mask tokens)."""

    def rule(args: Any, kwargs: Any, split: Split) -> Rule:
        w = args[0]
        shape = function(w.detach().to("meta"), *args[1:], **kwargs).shape
        tail = shape[len(shape) - w.ndim :]
        if not (len(shape) > w.ndim or w.shape[:1] == (1,)) or any(old not in (1, new) for old, new in zip(w.shape, tail, strict=True)):
            raise NotCovered(f"{function.__name__} from shape {tuple(w.shape)} to {tuple(shape)}")

        def run(p: dict[str, Tensor]) -> Tensor:
            y = function(p["weight"], *args[1:], **kwargs)
            return y.clone() if y.numel() == w.numel() else y  # not the parameter's own memory, which the caller might then change in place

        def gradients(gy: Tensor, x: Tensor | None, slots: tuple[str, ...]) -> Found:
            yield "weight", _unbroadcast(wide(gy), w, split)

        return Rule(
            parameters={"weight": w},
            input=w.new_empty(shape[0], 0),  # as many rows as the output has
            without_input=frozenset({"weight"}),
            run=run,
            gradients=gradients,
            takes_shared=True,
        )

    return rule


_mul, _add = _broadcast(torch.mul, True), _broadcast(torch.add, False)
EXPANDING: tuple[Any, ...] = (torch.Tensor.expand, torch.Tensor.expand_as, torch.Tensor.repeat, torch.Tensor.broadcast_to, torch.broadcast_to)
RULES: dict[Any, Callable[[Any, Any, Split], Rule]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.conv2d: _conv(F.conv2d, 2),
    F.conv1d: _conv(F.conv1d, 1),
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    torch.Tensor.mul: _mul,
    torch.mul: _mul,
    torch.Tensor.add: _add,
    torch.add: _add,
    torch.Tensor.add_: _broadcast(torch.Tensor.add_, False, in_place=True),  # also x += weight
    **{function: _expand(function) for function in EXPANDING},
}
