"""Tensors that parameters make alone, the same for every sample: a position table cut to length or looked up, a class token on its way.

Such a step meets no sample, so there is nothing per sample to say about it yet. It is run as it is and remembered. Where its result w meets
the samples (x + w, x * w, w.expand(B, ...)) a rule takes w for a parameter, and w's gradients g_i are carried back to the parameters by the
step's own backward, one sample at a time. Exact for any step; those in STEPS are cheap, and make nothing larger than w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsnr.engines.rules import Found, bind_embedding
from gsnr.gradients import Dense, Rows

Back = Callable[[Tensor], Found]
STEPS = frozenset(
    (
        *("__getitem__", "select", "narrow", "index_select", "expand", "expand_as", "repeat", "broadcast_to"),
        *("unsqueeze", "squeeze", "view", "reshape", "flatten", "unflatten", "transpose", "permute", "movedim"),
        *("contiguous", "clone", "to", "type_as", "float", "double", "half", "bfloat16"),
        *("add", "sub", "__rsub__", "mul", "neg", "cat", "concat", "stack", "interpolate"),
    )
)


@dataclass(frozen=True)
class Shared:
    """A parameter, or a tensor made of parameters alone: `roots`, name -> parameter. `tensor` stays in autograd's graph, where a use without a
    rule is found; rules get `stand_in`. back(g_N*) yields the gradients of the roots."""

    tensor: Tensor
    stand_in: nn.Parameter
    roots: dict[str, nn.Parameter]
    version: int
    back: Back

    @classmethod
    def parameter(cls, name: str, p: nn.Parameter) -> Shared:
        """One that is selected."""
        return cls(p, p, {name: p}, p._version, lambda g_N: iter([(name, Dense(g_N))]))

    @property
    def is_parameter(self) -> bool:
        return self.tensor is self.stand_in

    @property
    def is_as_made(self) -> bool:
        """False once it, or a view of it, was changed in place: then it is no longer what `back` is about."""
        return self.is_parameter or self.tensor._version == self.version


def tensors(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Those among the arguments of a call, and in lists and tuples among them."""
    for x in (*args, *kwargs.values()):
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from (y for y in x if isinstance(y, Tensor))


def step(func: Any, args: Any, kwargs: dict[str, Any], result: Any, sources: list[Shared]) -> Shared | None:
    """What func made of `sources`, if it made it of them alone (and of constants), and is one of STEPS or an embedding; else None."""
    own = {id(source.tensor) for source in sources}
    others = (x for x in tensors(args, kwargs) if id(x) not in own)
    if not isinstance(result, Tensor) or not result.requires_grad or any(x.requires_grad and not isinstance(x, nn.Parameter) for x in others):
        return None
    if not all(source.is_as_made for source in sources) or (func is not F.embedding and getattr(func, "__name__", "") not in STEPS):
        return None
    roots = {name: p for source in sources for name, p in source.roots.items()}
    plain = func is F.embedding and sources[0].is_parameter
    back = _lookup(next(iter(roots)), bind_embedding(args, kwargs)) if plain else _autograd(result, roots)
    return Shared(result, nn.Parameter(result.detach(), requires_grad=False), roots, result._version, back)


def _autograd(result: Tensor, roots: dict[str, nn.Parameter]) -> Back:
    def back(g_N: Tensor) -> Found:
        each = [torch.autograd.grad(result, list(roots.values()), g, retain_graph=True) for g in g_N.to(result.dtype)]
        for name, column in zip(roots, zip(*each, strict=True), strict=True):
            yield name, Dense(torch.stack(column))

    return back


def _lookup(name: str, v: dict[str, Any]) -> Back:
    """Rows of a table that all samples read: per sample not of the table's size, but of those rows'."""
    index_T, shape = v["input"].flatten(), v["weight"].shape

    def back(g_N: Tensor) -> Found:
        g_NTp = g_N.reshape(len(g_N), len(index_T), -1)
        if v["padding_idx"] is not None:
            g_NTp = g_NTp.masked_fill((index_T == v["padding_idx"] % shape[0]).unsqueeze(-1), 0)
        yield name, Rows(index_T.expand(len(g_N), -1), g_NTp, shape)

    return back
