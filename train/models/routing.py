"""Diffusion-adaptive routing (DAR, arXiv 2605.20708): what a sublayer reads is a mixture of what earlier ones wrote, not their sum.

v_0 is the token embedding, v_l the gated output of sublayer l (attention and MLP counted apart, L = 2 depth). Sublayer l reads

    h_l = sum_i a_i v_i,   a = softmax_i(q_l . RMSNorm(v_i) / sqrt(D)),   token by token,

over v_0, a summary of each finished chunk of S sublayers, and all of its own chunk. No code of the paper is public; what it leaves open is an
option here (docs/routing.md).

Shapes: B batch, T tokens, D hidden size, n sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gsnr.train.config import ModelConfig

QUERIES = ("static", "static_t", "dynamic")
SUMMARIES = ("last", "sum")
FINALS = ("own", "reuse", "summaries")
ROUTING_OPTIONS = ("residual", "queries", "chunk", "summary", "final", "query_std")  # of a model
EPS = 1e-6  # of RMSNorm; the paper gives none, and every v_l is 0 when training begins
CACHED = 2**18  # numbers of one source that a step over samples takes on a CPU: those of all sources then stay in its cache


def _parts(v_BTD: Tensor) -> Iterator[slice]:
    """Samples a step: all of them on an accelerator, where launches cost."""
    samples = len(v_BTD)
    step = samples if v_BTD.device.type != "cpu" else max(1, CACHED // max(1, v_BTD[0].numel()))
    return (slice(first, first + step) for first in range(0, samples, step))


class _Mixture(torch.autograd.Function):
    """h = sum_i softmax_i(s r_i q.v_i) v_i with r_i = 1/rms(v_i), reading every source once forward and once backward; none is copied.

    q (B,1,D) or (B,T,D), v_i (B,T,D); -> h (B,T,D) float32 or wider, and a (B,T,n). Its derivative is for first-order use."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, eps: float, *sources: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = torch.promote_types(q.dtype, torch.float32)
        made: list[tuple[Tensor, ...]] = []
        scale = 1 / math.sqrt(q.shape[-1])
        for rows in _parts(sources[0]):
            here = [v[rows].to(kind) for v in sources]
            inverse = torch.stack([v.square().mean(-1) for v in here], -1).add(eps).rsqrt()
            logits = torch.stack([(v * q[rows]).sum(-1) for v in here], -1) * inverse * scale
            weights = logits.softmax(-1)
            mixed = weights[..., 0, None] * here[0]
            for i, v in enumerate(here[1:], start=1):
                mixed = torch.addcmul(mixed, weights[..., i, None], v)
            made.append((mixed, weights, logits, inverse))
        h_BTD, weights_BTn, logits_BTn, inverse_BTn = made[0] if len(made) == 1 else map(torch.cat, zip(*made, strict=True))
        return h_BTD, weights_BTn, logits_BTn, inverse_BTn

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q, _, *sources = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(q, *output[1:], *sources)

    @staticmethod
    def backward(ctx: Any, dh_BTD: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        q, weights_BTn, logits_BTn, inverse_BTn, *sources = ctx.saved_tensors
        dq, *dv = (dh_BTD.new_empty(x.shape, dtype=x.dtype) for x in (q, *sources))
        scale, width = 1 / math.sqrt(q.shape[-1]), q.shape[-1]
        for rows in _parts(sources[0]):
            dh, a, logits, inverse = dh_BTD[rows], weights_BTn[rows], logits_BTn[rows], inverse_BTn[rows]
            here = [v[rows].to(dh.dtype) for v in sources]
            da = torch.stack([(v * dh).sum(-1) for v in here], -1)
            dlogits = a * (da - (a * da).sum(-1, keepdim=True))
            alpha, beta = dlogits * inverse * scale, -dlogits * logits * inverse.square() / width
            dquery = torch.zeros_like(dh)
            for i, v in enumerate(here):
                dquery = torch.addcmul(dquery, alpha[..., i, None], v)
                grown = torch.addcmul(a[..., i, None] * dh, alpha[..., i, None], q[rows].to(dh.dtype))
                dv[i][rows] = torch.addcmul(grown, beta[..., i, None], v).to(sources[i].dtype)
            dq[rows] = (dquery.sum(1, keepdim=True) if q.shape[1] == 1 else dquery).to(q.dtype)
        return dq, None, *dv


def other_function(model: ModelConfig) -> str:
    """Why such a model with the weights of a plain residual stream would be another function; "" where it is the same, but for LayerNorm's eps."""
    if model.query_std:
        return f"--model.query-std is {model.query_std}, not 0"
    if model.queries == "static_t":
        return "--model.queries static_t adds the time embedding to queries of 0 (static and dynamic keep them)"
    if model.chunk not in (0, 1) and model.summary != "sum":
        return f"--model.summary {model.summary} forgets what a chunk wrote but the end (sum keeps it, and so does --model.chunk 0)"
    return ""


class Aggregator(nn.Module):
    """One sublayer's mixture of sources. query: (D,), or (D,D) of v_{l-1} where queries are dynamic; norm: (D,), the weight of RMSNorm."""

    def __init__(self, hidden_size: int, dynamic: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(hidden_size, hidden_size) if dynamic else torch.zeros(hidden_size))
        self.norm = nn.Parameter(torch.ones(hidden_size))

    def mix(self, sources: Sequence[Tensor], last_BTD: Tensor, shift_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """h (B,T,D) and the weights of the sources (B,T,n). last: v_{l-1}; shift: what static_t adds to the query."""
        samples = len(last_BTD)
        if self.query.ndim == 2:
            q = nn.functional.linear(last_BTD, self.query)
        else:
            q = self.query.expand(samples, 1, -1)
            q = q if shift_BD is None else q + shift_BD.unsqueeze(1)
        h_BTD, weights_BTn, *_ = _Mixture.apply(q * self.norm.expand(samples, 1, -1), EPS, *sources)
        return h_BTD, weights_BTn


class Routing(nn.Module):
    """The aggregators of a model of `depth` blocks, and the order in which sublayers read and write.

    queries: static, a vector each; static_t, the time embedding added; dynamic, a matrix times v_{l-1}. chunk: its sublayers; 0 is the paper's dense
    form, one chunk of all. summary of a finished chunk: its last output (the paper), or their sum (ours: with queries of 0 the function is that of
    the plain residual stream). final: what the final layer reads by: an aggregator of its own over the last chunk too, the last sublayer's again
    (the paper's under REPA), or one of its own over summaries alone. query_std: of the initial queries.

    Raises ValueError for options that do not go together."""

    def __init__(self, *, depth: int, hidden_size: int, queries: str, chunk: int, summary: str, final: str, query_std: float) -> None:
        super().__init__()
        for name, value, known in (("queries", queries, QUERIES), ("summary", summary, SUMMARIES), ("final", final, FINALS)):
            if value not in known:
                raise ValueError(f"model.{name} {value!r} does not exist; choose from {', '.join(known)}")
        self.sublayers = 2 * depth
        self.chunk = chunk or self.sublayers
        if self.sublayers % self.chunk:
            raise ValueError(f"model.chunk {chunk}: {depth} blocks have {self.sublayers} sublayers, which it must divide; 0 is all")
        self.queries, self.summary, self.final = queries, summary, final
        count = self.sublayers + (final != "reuse")
        aggregators = [Aggregator(hidden_size, queries == "dynamic") for _ in range(count)]
        self.aggregators = nn.ModuleList(aggregators)
        for aggregator in aggregators if query_std else ():
            nn.init.normal_(aggregator.query, std=query_std)

    def sources(self, number: int) -> tuple[int, int]:
        """What sublayer `number` reads beside v_0 (from 1; L + 1 is the final layer): finished chunks, and sublayers since."""
        done = (number - 1) // self.chunk - (number > self.sublayers and self.final != "summaries")
        return done, number - 1 - done * self.chunk

    def macs(self, tokens: int) -> int:
        """Of all aggregations of a sample: query times key and weighted sum, source by source. Making a dynamic query is not among them."""
        read = sum(1 + sum(self.sources(number)) for number in range(1, self.sublayers + 2))
        first: Any = self.aggregators[0]
        return 2 * read * tokens * int(first.norm.numel())

    def begin(self, v_BTD: Tensor, t_BD: Tensor) -> Stream:
        """The stream of one forward pass. v: the token embedding; t: the time embedding."""
        return Stream(self, v_BTD, t_BD if self.queries == "static_t" else None)


class Stream:
    """What sublayers of one forward pass have written, as far as later ones read it. weights: of the sources, aggregator by aggregator, where
    they are asked for."""

    def __init__(self, routing: Routing, v_BTD: Tensor, shift_BD: Tensor | None) -> None:
        self.routing, self.shift = routing, shift_BD
        self.finished, self.inside, self.last = [v_BTD], list[Tensor](), v_BTD
        self.written = 0
        self.weights: list[Tensor] | None = None

    def read(self) -> Tensor:
        """The input of the next sublayer, or of the final layer."""
        routing, number = self.routing, self.written
        if number % routing.chunk == 0 and (number < routing.sublayers or routing.final == "summaries"):
            self._close()
        reused = number == len(routing.aggregators)
        aggregator: Any = routing.aggregators[number - reused]
        h_BTD, weights_BTn = aggregator.mix([*self.finished, *self.inside], self.last, self.shift)
        if self.weights is not None:
            self.weights.append(weights_BTn)
        return h_BTD

    def write(self, v_BTD: Tensor) -> None:
        """Keeps what the next sublayer gave."""
        self.inside.append(v_BTD)
        self.last = v_BTD
        self.written += 1

    def _close(self) -> None:
        """The chunk becomes one source."""
        if self.inside:
            self.finished.append(self.last if self.routing.summary == "last" else sum(self.inside[1:], self.inside[0]))
            self.inside = []
