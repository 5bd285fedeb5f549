"""Diffusion-adaptive routing (DAR): against the equations written out in float64, the plain residual stream, and the paper's counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gsnr
from gsnr.train.models.routing import Aggregator, Routing, _Mixture
from gsnr.train.models.sit import SiT
from gsnr.train.parameter_groups import groups_of
from tests.benchmarks.routing import plainly

SMALL = {"input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 8, "depth": 4, "num_heads": 2, "num_classes": 3}
Q = ("static", "static_t", "dynamic")


def made(seed: int = 0, std: float = 0.3, **options: Any) -> SiT:
    """In float64, with no weight at zero (queries stay as they were made)."""
    torch.manual_seed(seed)
    model = SiT(**(SMALL | options)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("routing."):
                p.copy_(std * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def awake(model: SiT, seed: int = 1) -> SiT:
    """Queries and key weights at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("routing."):
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def batch(samples: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 2, 4, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "t": torch.rand(samples, generator=generator, dtype=torch.float64), "y": torch.arange(samples) % 3}


def sources_of(sublayers: int, chunk: int, number: int) -> list[tuple[int, ...]]:
    """By the paper: what sublayer `number` reads (from 1; sublayers + 1 is the final layer), each source the outputs that it stands for."""
    of = min((number - 1) // chunk, sublayers // chunk - 1)  # chunks finished before it
    return [(0,), *(tuple(range(n * chunk + 1, (n + 1) * chunk + 1)) for n in range(of)), *((i,) for i in range(of * chunk + 1, number))]


def naive(model: SiT, data: dict[str, Tensor], chunk: int, summary: str, final: str) -> tuple[Tensor, list[np.ndarray], list[Tensor]]:
    """Velocity, the weights of each aggregator (B,T,n), and what each sublayer reads: loops over samples, tokens and sources."""
    assert model.routing is not None
    e = model.t_embedder(data["t"])
    c = e + model.y_embedder(data["y"], None)
    v, read, weights = [model.x_embedder(data["x"]) + model.pos_embed], [], []
    width, total = v[0].shape[-1], 2 * len(model.blocks)

    def mix(aggregator: Aggregator, sources: list[Tensor]) -> Tensor:
        rows, found = [], []
        for b in range(len(e)):
            for t in range(v[0].shape[1]):
                q = aggregator.query @ v[-1][b, t] if aggregator.query.ndim == 2 else aggregator.query
                q = q + e[b] if model.routing.queries == "static_t" else q
                keys = [aggregator.norm * s[b, t] / torch.sqrt((s[b, t] ** 2).mean() + 1e-6) for s in sources]
                a = torch.softmax(torch.stack([q @ k for k in keys]) / math.sqrt(width), 0)
                found.append(a.detach().numpy())
                rows.append(sum(x * s[b, t] for x, s in zip(a, sources, strict=True)))
        weights.append(np.array(found).reshape(*v[0].shape[:2], -1))
        return torch.stack(rows).view_as(v[0])

    stands = lambda group: v[group[-1]] if summary == "last" else sum(v[i] for i in group)
    for number in range(1, total + 1):
        read.append(mix(model.routing.aggregators[number - 1], [stands(group) for group in sources_of(total, chunk, number)]))
        block = model.blocks[(number - 1) // 2]
        parts = block.adaLN_modulation(c).chunk(6, 1)[3 * ((number - 1) % 2) :][:3]
        norm, layer = (block.norm1, lambda h, block=block: block.attn(h)[0]) if number % 2 else (block.norm2, block.mlp)
        v.append(parts[2][:, None] * layer(norm(read[-1]) * (1 + parts[1][:, None]) + parts[0][:, None]))
    groups = sources_of(total, chunk, total + 1)
    if final == "summaries":
        groups = [(0,), *(tuple(range(n * chunk + 1, (n + 1) * chunk + 1)) for n in range(total // chunk))]
    read.append(mix(model.routing.aggregators[total - (final == "reuse")], [stands(group) for group in groups]))
    return model.unpatchify(model.final_layer(read[-1], c)), weights, read


@pytest.mark.parametrize("queries", Q)
@pytest.mark.parametrize(("chunk", "summary", "final"), [(8, "last", "own"), (4, "last", "own"), (2, "sum", "reuse"), (4, "sum", "summaries")])
def test_against_the_equations(queries: str, chunk: int, summary: str, final: str) -> None:
    """Outputs, weights, taps and the gradients of every parameter."""
    model, data = awake(made(residual="dar", queries=queries, chunk=chunk % 8, summary=summary, final=final)), batch(2)
    expected, weights, read = naive(model, data, chunk, summary, final)
    velocity, hidden = model.forward_with_taps(**data, taps=(1, 3, 4))
    torch.testing.assert_close(velocity, expected, rtol=1e-11, atol=1e-12)
    for k, h in hidden.items():
        torch.testing.assert_close(h, read[2 * k], rtol=1e-11, atol=1e-12)
    ours, theirs = (torch.autograd.grad(v.square().sum(), list(model.parameters()), allow_unused=True) for v in (velocity, expected))
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)
    assert model.routing is not None
    stream = model.routing.begin(*embedded(model, data))
    stream.weights = []
    c = model.t_embedder(data["t"]) + model.y_embedder(data["y"], None)
    h = stream.read()
    for block in model.blocks:
        h = model._routed(block, h, c, stream)
    assert len(stream.weights) == len(weights) == 9
    for a, b in zip(stream.weights, weights, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-10)
        np.testing.assert_allclose(a.detach().sum(-1).numpy(), 1, rtol=1e-12)


def embedded(model: SiT, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return model.x_embedder(data["x"]) + model.pos_embed, model.t_embedder(data["t"])


@pytest.mark.parametrize("sublayers", [8, 12, 24, 56])
def test_sets_of_sources(sublayers: int) -> None:
    """|S_l| = n + (l - 1 - (n-1) S) of chunk n, |S_final| = N + S; in all 522 at S = 4 and 1653 dense for L = 56."""
    for chunk in (s for s in (1, 2, 4, 8, sublayers) if sublayers % s == 0):
        routing = Routing(depth=sublayers // 2, hidden_size=4, queries="static", chunk=chunk, summary="last", final="own", query_std=0.0)
        stream = routing.begin(torch.randn(1, 1, 4), torch.zeros(1, 4))
        stream.weights = []
        for _ in range(sublayers):
            stream.read()
            stream.write(torch.randn(1, 1, 4))
        stream.read()
        counts = [w.shape[-1] for w in stream.weights]
        chunks = [number // chunk + 1 for number in range(sublayers)]
        assert counts[:-1] == [n + (number - (n - 1) * chunk) for number, n in enumerate(chunks)]
        assert counts[-1] == sublayers // chunk + chunk
        assert len(stream.finished) + len(stream.inside) == counts[-1], "all that is held"
        if sublayers == 56 and chunk in (4, 56, 1):
            assert sum(counts) == {4: 522, 56: 1653, 1: 1653}[chunk]


@pytest.mark.parametrize("queries", Q)
def test_chunks_of_one_are_dense(queries: str) -> None:
    dense, ones = (awake(made(residual="dar", queries=queries, chunk=chunk)) for chunk in (0, 1))
    data = batch()
    for model in (dense, ones):
        model(**data).square().sum().backward()
    torch.testing.assert_close(dense(**data), ones(**data), rtol=1e-12, atol=1e-13)
    for p, q in zip(dense.parameters(), ones.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("chunk", "summary"), [(0, "last"), (1, "last"), (1, "sum"), (2, "sum"), (4, "sum")])
def test_queries_of_zero_are_the_plain_stream(chunk: int, summary: str) -> None:
    """With LayerNorm's eps 0 a mean is as good as a sum: the same velocity and gradients of all that both models have."""
    plain, routed = made(), made(residual="dar", chunk=chunk, summary=summary)
    data = batch()
    for model in (plain, routed):
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 0.0
        model(**data).square().sum().backward()
    torch.testing.assert_close(routed(**data), plain(**data), rtol=1e-10, atol=1e-12)
    grown = dict(routed.named_parameters())
    for name, p in plain.named_parameters():
        torch.testing.assert_close(grown[name].grad, p.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_the_last_output_of_a_chunk_is_another_function() -> None:
    data = batch()
    assert not torch.allclose(made()(**data), made(residual="dar", chunk=2, summary="last")(**data), rtol=1e-3)


def test_the_first_aggregator_learns_nothing_and_zeros_are_finite() -> None:
    """At the start every v_l is 0: weights are uniform, and no gradient is NaN. The first reads one source."""
    torch.manual_seed(0)
    model = SiT(**SMALL, residual="dar", queries="dynamic")
    data = {key: x.float() if x.is_floating_point() else x for key, x in batch().items()}
    (model(**data) - 1).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    other = awake(made(residual="dar", queries="dynamic"))
    other(**batch()).square().sum().backward()
    assert other.routing is not None
    first, second = other.routing.aggregators[0], other.routing.aggregators[1]
    assert first.query.grad.abs().max() < 1e-12 < second.query.grad.abs().max() and first.norm.grad.abs().max() < 1e-12 < second.norm.grad.abs().max()


def test_gradcheck_and_invariances() -> None:
    torch.manual_seed(0)
    sources = [torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    for dynamic in (False, True):
        aggregator = Aggregator(8, dynamic).double()
        nn.init.normal_(aggregator.query)
        function = lambda *given, aggregator=aggregator: aggregator.mix(given[:5], given[5], None)[0]
        last = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(function, (*sources, last))
        h, a = aggregator.mix(sources, last, None)
        order = [3, 1, 4, 0, 2]
        again, permuted = aggregator.mix([sources[i] for i in order], last, None)
        torch.testing.assert_close(permuted, a[..., order])
        torch.testing.assert_close(again, h)
        scaled, same = aggregator.mix([1e3 * sources[0], *sources[1:]], last, None)
        torch.testing.assert_close(same, a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(scaled - h, a[..., :1] * 999 * sources[0], rtol=1e-4, atol=1e-4)


def test_float32_against_operators_in_float64() -> None:
    """Value to 1e-6 and gradients to 1e-5, of sources whose sizes differ by a thousand, and one of zeros."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1.0, 0.03, 30.0, 0.0, 1.0)
    drawn = [size * torch.randn(4, 16, 64, generator=generator) for size in sizes] + [torch.randn(4, 16, 64, generator=generator)]
    direction, found = torch.randn(4, 16, 64, generator=generator), []
    for mix, kind in ((_Mixture.apply, torch.float32), (plainly, torch.float64)):
        *sources, q = (x.to(kind).requires_grad_() for x in drawn)
        h, a, *_ = mix(q, 1e-6, *sources)
        found.append((h, a, *torch.autograd.grad((h * direction).sum(), (*sources, q))))
    for number, (ours, theirs) in enumerate(zip(*found, strict=True)):
        bound = (1e-6 if number < 2 else 1e-5) * theirs.abs().max()
        assert (ours.double() - theirs).abs().max() <= bound, number


def test_static_t_begins_as_static() -> None:
    """Bit for bit, where the time embedder's last layer is 0 in both."""
    models = []
    for queries in ("static", "static_t"):
        torch.manual_seed(3)
        models.append(SiT(**SMALL, residual="dar", queries=queries, query_std=0.5))
    nn.init.zeros_(models[0].t_embedder.mlp[2].weight)
    data = {key: x.float() if x.is_floating_point() else x for key, x in batch().items()}
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for model in models:
        nn.init.normal_(model.final_layer.linear.weight, generator=torch.Generator().manual_seed(0))
        for block in model.blocks:
            nn.init.normal_(block.adaLN_modulation[1].weight, generator=torch.Generator().manual_seed(1))
    assert torch.equal(models[0](**data), models[1](**data))


def test_the_plain_model_has_the_weights_it_had() -> None:
    """Without routing nothing is drawn that was not drawn before, and with it the backbone begins alike."""
    states = []
    for options in ({}, {"residual": "dar", "queries": "dynamic"}):
        torch.manual_seed(7)
        states.append(SiT(**SMALL, **options).state_dict())
    assert set(states[1]) - set(states[0]) == {f"routing.aggregators.{i}.{name}" for i in range(9) for name in ("query", "norm")}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({}, 674.82),
        ({"residual": "dar"}, 674.95),
        ({"residual": "dar", "queries": "static_t"}, 674.95),
        ({"residual": "dar", "queries": "dynamic"}, 750.53),
        ({"hidden_size": 1216}, 751.76),
    ],
)
def test_parameters_of_xl(options: dict[str, Any], millions: float) -> None:
    """The paper's 675 M, 751 M (57 matrices) and SiT-Plus' 752 M. pos_embed is a buffer."""
    with torch.device("meta"):
        model = SiT(**options)
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 2) == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize("queries", Q)
def test_engines_agree(queries: str) -> None:
    model, data = awake(made(residual="dar", queries=queries, chunk=2)), batch(4)
    batches = [{"x": data["x"], "t": data["t"], "y": data["y"]}]
    loss = lambda m, b: m(b["x"], b["t"], b["y"]).square().flatten(1).mean(1)
    found = {engine: gsnr.measure(model, loss, batches, engine=engine)["all"] for engine in ("loop", "ghost", "vmap")}
    for engine in ("ghost", "vmap"):
        for name in ("gsnr", "signal", "noise"):
            assert getattr(found[engine], name) == pytest.approx(getattr(found["loop"], name), rel=1e-9), (engine, name)


def test_a_stopped_pass_and_recomputed_activations() -> None:
    model, data = awake(made(residual="dar", chunk=2)), batch()
    velocity, hidden = model.forward_with_taps(**data, taps=(2, 3))
    none, stopped = model.forward_with_taps(**data, taps=(2, 3), stop=True)
    assert none is None and all(torch.equal(stopped[k], hidden[k]) for k in (2, 3))
    _, inside = model.forward_with_taps(**data, taps=(-3,), stop=True)
    c, block = model.t_embedder(data["t"]) + model.y_embedder(data["y"], None), model.blocks[2]
    shift, scale = (x[:, None] for x in block.adaLN_modulation(c).chunk(6, 1)[:2])
    torch.testing.assert_close(inside[-3], block.attn.qkv(block.norm1(hidden[2]) * (1 + scale) + shift))
    assert velocity is not None
    plain = torch.autograd.grad(velocity.square().sum(), list(model.parameters()))
    model.checkpointing = True
    again = torch.autograd.grad(model(**data).square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_what_is_kept_for_backward() -> None:
    """No source is copied: an aggregation keeps sources that are there anyway, and numbers of (B,T,n)."""
    routing = Routing(depth=8, hidden_size=64, queries="static", chunk=4, summary="last", final="own", query_std=0.1)
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    v = [torch.randn(2, 16, 64, requires_grad=True) for _ in range(17)]
    stream = routing.begin(v[0], torch.zeros(2, 64))
    held = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = []
        for one in v[1:]:
            outputs.append(stream.read())
            stream.write(one)
            held.append(len(stream.finished) + len(stream.inside))
        outputs.append(stream.read())
    assert max(held) <= 4 + 4 + 1, "sources that are at hand: S + L/S, not L"
    own = {x.untyped_storage().data_ptr() for x in v}
    large = [size for place, size in kept.items() if place not in own]
    assert sum(large) < 17 * 2 * 16 * (3 * 9 + 8) * 4, "weights, logits and norms, and no stream"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"residual": "none"}, "model.residual 'none' does not exist; choose from standard, dar"),
        ({"residual": "dar", "queries": "fixed"}, "model.queries 'fixed' does not exist; choose from static, static_t, dynamic"),
        ({"residual": "dar", "chunk": 3}, "model.chunk 3: 4 blocks have 8 sublayers, which it must divide; 0 is all"),
        ({"residual": "dar", "summary": "mean"}, "model.summary 'mean' does not exist"),
        ({"residual": "dar", "final": "none"}, "model.final 'none' does not exist"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SiT(**SMALL, **options)


def test_what_a_tap_s_gradient_reaches() -> None:
    """The parameters of a group below a tap are those with a gradient there."""
    model, data = awake(made(residual="dar", chunk=2)), batch()
    for tap in (1, 3, 4):
        _, hidden = model.forward_with_taps(**data, taps=(tap,), stop=True)
        found = torch.autograd.grad(hidden[tap].square().sum(), list(model.parameters()), allow_unused=True)
        reached = {name for (name, _), g in zip(model.named_parameters(), found, strict=True) if g is not None}
        assert reached == {name for name, _ in model.named_parameters() if groups_of(name, tap)}
