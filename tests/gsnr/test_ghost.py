"""The ghost engine against one .backward() a sample: every layer type, drawn at random; ties, folds, repeats; and what it must refuse."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gsnr
from gsnr.gradients import base, patches
from tests.gsnr.ghost_checks import agrees, squares
from tests.gsnr.problems import naive_gradients

GRID = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=["by cost", "formed", "Gram"])
def every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way a norm can be taken, whatever its cost would be."""
    if request.param == "formed":
        monkeypatch.setattr(base, "PREFERRED", ("form",))
    if request.param == "Gram":
        monkeypatch.setattr(base, "PREFERRED", ("gram", "pixels", "unfold", "turn"))


FIXTURE = settings(GRID, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@FIXTURE
@given(tokens=st.integers(0, 9), d=st.integers(1, 7), p=st.integers(1, 7), bias=st.booleans(), fold=st.booleans(), n=st.integers(2, 5))
def test_linear(every_way: None, tokens: int, d: int, p: int, bias: bool, fold: bool, n: int) -> None:
    torch.manual_seed(tokens + 10 * d + 100 * p)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(d, p, bias=bias), nn.Linear(p, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.second(torch.tanh(self.first(x.flatten(0, 1) if fold and tokens else x)))
            return h.unflatten(0, (len(x), -1)) if fold and tokens else h

    agrees(Net(), torch.randn(n, tokens, d) if tokens else torch.randn(n, d))


@FIXTURE
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("same"), st.just("valid")),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    frames=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect"]),
)
def test_convolution(every_way: None, kernel, stride, padding, dilation, groups, bias, frames, mode) -> None:
    torch.manual_seed(sum(kernel) + 10 * sum(stride))
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups, bias, padding_mode=mode)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = conv, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.conv(x.flatten(0, 1)), inplace=True)
            return self.head(h.mean((2, 3))).unflatten(0, (len(x), -1))

    agrees(Net(), torch.randn(3, frames, 2, 7, 6))


@pytest.mark.parametrize("way", ["form", "convolve", "unfold", "pixels"])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 2, 1), (3, 0, 1, 4)])
def test_every_way_of_a_convolution(monkeypatch: pytest.MonkeyPatch, way: str, stride: int, padding: int, dilation: int, groups: int) -> None:
    monkeypatch.setattr(base, "PREFERRED", ("form", "convolve") if way == "convolve" else (way,))
    monkeypatch.setattr(patches, "CONVOLVED_PIXELS", 0 if way == "convolve" else 1 << 30)
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups)
    agrees(nn.Sequential(conv, nn.SiLU(), nn.Flatten(2)), torch.randn(3, 4, 9, 8))


@GRID
@given(
    length=st.integers(4, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "valid"]),
    groups=st.sampled_from([1, 2]),
)
def test_convolution_1d(length: int, kernel: int, stride: int, padding, groups: int) -> None:
    torch.manual_seed(length)
    agrees(nn.Sequential(nn.Conv1d(2, 4, kernel, stride, padding, groups=groups), nn.Tanh(), nn.Flatten()), torch.randn(3, 2, length))


@GRID
@given(tokens=st.integers(0, 6), padding=st.sampled_from([None, 0, -1]), rows=st.integers(2, 4))
def test_embedding(tokens: int, padding: int | None, rows: int) -> None:
    torch.manual_seed(tokens)
    model = nn.Sequential(nn.Embedding(rows, 5, padding_idx=padding), nn.Linear(5, 3), nn.Tanh())
    agrees(model, torch.randint(rows, (4, tokens) if tokens else (4,)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.LayerNorm(6), (4, 6)),
        (nn.LayerNorm((5, 6)), (4, 3, 5, 6)),
        (nn.LayerNorm(6, bias=False), (4, 5, 6)),
        (nn.RMSNorm(6), (4, 5, 6)),
        (nn.RMSNorm((5, 6), eps=1e-3), (4, 5, 6)),
        (nn.GroupNorm(2, 6), (4, 6, 3, 3)),
        (nn.GroupNorm(3, 6), (4, 6)),
        (nn.BatchNorm2d(6).eval(), (4, 6, 3, 3)),
        (nn.BatchNorm1d(6).eval(), (4, 6)),
    ],
    ids=str,
)
def test_affine_norms(model: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p)
    agrees(nn.Sequential(nn.Tanh(), model), torch.randn(*shape))


class QKNorm(nn.Module):
    """Attention with query and key norms and a learned scale per channel, as in SiT's successors; MLP folded to [N T, D]."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.LayerNorm(width // heads)
        self.scale, self.gain = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(()))
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.position
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2)
        h = h + self.scale * self.proj(a)
        return (h + self.mlp(h.flatten(0, 1)).view_as(h)) * self.gain


def test_attention_with_qk_norm_scales_and_positions() -> None:
    torch.manual_seed(0)
    agrees(QKNorm(), torch.randn(4, 5, 8))


class Twice(nn.Module):
    """One linear layer three times at two widths of tokens, a convolution twice, and an embedding tied to the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.shared, self.conv = nn.Linear(6, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.out = nn.Linear(6, 7)
        self.out.weight = self.table.weight
        self.never = nn.Linear(2, 2)

    def forward(self, index: Tensor) -> Tensor:
        h = torch.tanh(self.shared(self.table(index)))
        h = torch.tanh(self.shared(h)) + self.shared(h.mean(1)).unsqueeze(1)
        h = self.conv(torch.tanh(self.conv(h.transpose(1, 2)))).transpose(1, 2)
        self.never(h[..., :2])  # used, but not by the loss
        return self.out(h) + 0.1 * self.table(index.flip(1)).sum(-1, keepdim=True)


def test_modules_used_twice_and_tied_parameters(every_way: None) -> None:
    torch.manual_seed(0)
    agrees(Twice(), torch.randint(7, (4, 5)))


def test_tied_convolution_and_linear() -> None:
    """A 1 x 1 convolution whose weight a linear layer reads through a view is not covered; two convolutions sharing one parameter are."""
    torch.manual_seed(0)
    a, b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    b.weight = a.weight
    agrees(nn.Sequential(a, nn.Tanh(), b, nn.Flatten()), torch.randn(3, 3, 4, 4))


@pytest.mark.filterwarnings("ignore:measured again in float64")  # in eval mode all samples are equal: no noise
@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_the_same_masks_twice(training: bool) -> None:
    """In train mode too: r_i of a second pass belongs to the gradients of the first, and sums to ||S||^2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train(training)
    before = torch.get_rng_state()
    batches = [{"x": torch.ones(9, 5)}, {"x": torch.ones(4, 5)}, {"x": torch.ones(9, 5)}]
    whole = gsnr.measure(model, squares, batches, engine="ghost")["all"]
    for memory in (0, 1500, 3000, 1 << 30):  # nothing, the small batch, one of the large ones, everything is kept
        e = gsnr.measure(model, squares, batches, engine="ghost", memory_bytes=memory)["all"]
        np.testing.assert_allclose(e.q_n, whole.q_n, rtol=1e-6)
        np.testing.assert_allclose(e.r_n, whole.r_n, rtol=1e-5, atol=1e-5 * np.abs(whole.r_n).max())
        assert e.r_n.sum() == pytest.approx(e.sum_sq, rel=1e-5)
        assert (np.ptp(e.q_n) > 0.1 * e.q_n.mean()) == training  # equal inputs differ by their masks alone
    assert torch.equal(before, torch.get_rng_state())
    assert model.training is training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's own, of an RMSNorm under autocast
def test_autocast(dtype: torch.dtype, outside: bool) -> None:
    """Under autocast the gradients are those autograd has under autocast (to that type's rounding), and statistics are not rounded to it."""
    torch.manual_seed(0)
    model = QKNorm()
    data = {"x": torch.randn(6, 5, 8)}

    def loss(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype):
            y = m(b["x"])
        return y.float().square().flatten(1).mean(1)

    reference = naive_gradients(model, loss, data)
    if outside:
        with torch.autocast("cpu", dtype):
            e = gsnr.measure(model, loss, [data], engine="ghost")["all"]
    else:
        e = gsnr.measure(model, loss, [data], engine="ghost")["all"]
    np.testing.assert_allclose(e.q_n, (reference**2).sum(1), rtol=2e-2)
    assert e.r_n.sum() == pytest.approx(e.sum_sq, rel=1e-4)  # holds only if products and norms are taken of the same numbers in float32


def test_activation_checkpointing() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            self.reentrant, self.block, self.head = reentrant, QKNorm(), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(x + self.head.bias.sum() * 0)
            h = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
            return self.head(h)

    model = Net(False)
    plain = Net(None)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(4, 5, 8).double()
    only = {"parameters": lambda n: n != "head.bias"}
    a, b = (gsnr.measure(m.double(), squares, [{"x": x}], engine="ghost", **only)["all"] for m in (model, plain))
    np.testing.assert_allclose(a.q_n, b.q_n, rtol=1e-10)
    np.testing.assert_allclose(a.r_n, b.r_n, rtol=1e-10)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        gsnr.measure(Net(True).double(), squares, [{"x": x.requires_grad_()}], engine="ghost", **only)


class Uncovered(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear, self.extra = how, nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        match self.how:
            case "matmul":
                return h @ self.extra
            case "reused":
                return h @ self.linear.weight
            case "attention":
                return self.attention(h, h, h)[0]
            case "input":
                return h + self.linear(self.extra)
            case "sequence first":
                return self.linear(h.transpose(0, 1)).transpose(0, 1)
            case "not per sample":
                return h * self.linear(x.new_ones(2, 4)).mean()
        raise AssertionError(self.how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("matmul", r"parameter 'extra' is used by matmul"),
        ("reused", r"parameter 'linear.weight' is used by matmul"),
        ("input", r"(parameter 'extra'|'linear.(weight|bias)' is used by linear)"),
        ("attention", r"parameter 'attention\.[a-z_.]*' is used by multi_head_attention_forward"),
        ("sequence first", r"'linear.(weight|bias)'"),
        ("not per sample", r"'linear.(weight|bias)'"),
    ],
)
def test_refuses_by_name_what_it_has_no_rule_for(how: str, message: str) -> None:
    """Never a silent omission: the error names the parameter; "auto" takes vmap instead and says so; the result is that of the loop."""
    torch.manual_seed(0)
    model, data = Uncovered(how).double(), {"x": torch.randn(6, 4, 4).double()}
    with pytest.raises(ValueError, match=message):
        gsnr.measure(model, squares, [data], engine="ghost")
    with pytest.warns(UserWarning, match="engine 'vmap', which is slower, because 'ghost': .*(" + message + ")"):
        result = gsnr.measure(model, squares, [data])
    assert result.engine == "vmap"
    reference = naive_gradients(model, squares, data)
    np.testing.assert_allclose(result["all"].q_n, (reference**2).sum(1), rtol=1e-9)


def test_only_selected_parameters_need_a_rule() -> None:
    model, data = Uncovered("matmul"), {"x": torch.randn(6, 4, 4)}
    assert gsnr.measure(model, squares, [data], parameters=lambda n: n.startswith("linear")).engine == "ghost"
    model.extra.requires_grad_(False)
    model.attention.requires_grad_(False)
    assert gsnr.measure(model, squares, [data]).engine == "ghost"


def test_backward_hooks_and_frozen_parts_are_left_alone() -> None:
    """Nothing is left in .grad, buffers do not change; a hook, which needs a whole gradient, is respected by the loop alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2))
    data = {"x": torch.randn(6, 4)}
    state = copy.deepcopy(model.state_dict())
    gsnr.measure(model, squares, [data], engine="ghost")
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    model[0].weight.register_hook(lambda g: g * 0.5)
    with pytest.raises(ValueError, match=r"'0.weight' has a gradient hook"):
        gsnr.measure(model, squares, [data], engine="ghost")
    with pytest.warns(UserWarning, match=r"engine 'loop', which is slower, because 'ghost': .* hook.*; 'vmap': the gradient of parameter '0.weight'"):
        result = gsnr.measure(model, squares, [data])
    np.testing.assert_allclose(result["all"].q_n, (naive_gradients(model, squares, data) ** 2).sum(1), rtol=1e-4)


class Gathered(nn.Module):
    """Reads only the marked tokens: rows of the linear layer come unevenly from the samples, though their number divides evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        marked = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)[: len(x)]
        h = torch.zeros_like(x)
        h[marked] = self.linear(x[marked])
        return h


class Positions(nn.Module):
    """Looks positions up once for all samples, as nanoGPT does; its loss reads the first tokens of a sample only."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(16, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.table(torch.arange(16)))[:, :3] * self.linear(x[:, :1])


class OwnGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


class Reached(nn.Module):
    """Holds its weight in a list, past what torch.func can swap."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kept = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.kept[0].square().sum()


@pytest.mark.parametrize(
    ("model", "shape", "sizes"),
    [
        (Gathered(), (4, 4, 4), (4,)),
        (Positions(), (8, 16, 4), (8,)),
        (Positions(), (9, 16, 4), (1, 8)),
        (OwnGradient(), (4, 4), (4,)),
        (OwnGradient(), (4, 4), (1, 1, 1, 1)),
        (Reached(), (6, 4), (6,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@pytest.mark.filterwarnings("ignore:engine 'vmap'", "ignore:engine 'loop'")
def test_never_a_silently_wrong_number(model: nn.Module, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Shapes that fit by chance, gradients inside the loss, parameters reached past the module: by each engine either the loop's numbers or an error,
    and by "auto" the numbers."""
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p)
    model, x = model.double(), torch.randn(*shape).double()
    starts = np.cumsum([0, *sizes])
    batches = [{"x": x[a:b]} for a, b in pairwise(starts)]
    reference = np.concatenate([naive_gradients(model, squares, batch) for batch in batches]) if not isinstance(model, Gathered) else None
    if reference is None:  # its rows depend on their place in the batch
        with pytest.raises(ValueError):
            gsnr.measure(model, squares, batches, engine="ghost")
        return
    for engine in ("auto", "ghost", "vmap", "loop"):
        try:
            result = gsnr.measure(model, squares, batches, engine=engine)
        except (ValueError, RuntimeError):
            assert engine in ("ghost", "vmap")
            continue
        np.testing.assert_allclose(result["all"].q_n, (reference**2).sum(1), rtol=1e-8)
        np.testing.assert_allclose(result["all"].r_n, reference @ reference.sum(0), rtol=1e-8, atol=1e-9 * (reference**2).sum())


def test_coupling_is_found_wherever_it_shows() -> None:
    """Through the sample before; and honest losses near zero, all rounding, are no false alarm."""
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), {"x": torch.randn(8, 4)}
    chained = lambda m, b: (m(b["x"]) - 0.5 * torch.cat([m(b["x"])[:1] * 0, m(b["x"])[:-1]])).square().sum(1)
    for engine in ("auto", "ghost", "vmap", "loop"):
        with pytest.raises(ValueError, match="coupled"):
            gsnr.measure(model, chained, [data], engine=engine)
    teacher = copy.deepcopy(model)
    for seed in range(20):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        gsnr.measure(model, lambda m, b: (m(b["x"]) - teacher(b["x"]).detach() + 1e-7).square().sum(1), [{"x": x}], interval=False)
        gsnr.measure(model, lambda m, b: (m(b["x"]) - m(b["x"]).detach() * (1 + 1e-6)).sum(1), [{"x": x}], interval=False)
