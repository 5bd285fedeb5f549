"""The ghost engine on what all samples share: position tables, class tokens, and steps between parameters; against one .backward() a sample."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gsnr
from tests.gsnr.ghost_checks import agrees, squares
from tests.gsnr.problems import naive_gradients

L, D = 6, 8


class ViTLike(nn.Module):
    """Class and register tokens expanded over the batch, a position table of shape (1, L + 2, D), in one of the ways in which models write it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.cls, self.register = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(torch.randn(D))
        self.position = nn.Parameter(torch.randn(1, L + 2, D))
        self.embed, self.mlp = nn.Linear(3, D), nn.Linear(D, D)
        self.gamma = nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        h, b = self.embed(x), len(x)
        match self.how:
            case "expand":
                h = torch.cat([self.cls.expand(b, -1, -1), self.register.expand(b, 1, -1), h], 1) + self.position
            case "repeat, in place, cut":
                h = torch.cat([self.cls.repeat(b, 1, 1), self.register[None, None].expand(b, -1, -1), h], 1)
                h += self.position[:, : h.shape[1]]
            case "positions first":
                h = h + self.position[:, 2:, :]
                token = self.cls + self.position[:, :1]
                h = torch.cat((token.expand(b, -1, -1), self.register.expand_as(h[:, :1]), h), dim=1)
            case "joined first":
                tokens = torch.cat([self.cls, self.register.view(1, 1, -1)], dim=1) + self.position[:, :2]
                h = torch.cat([torch.broadcast_to(tokens, (b, 2, D)), h + self.position[:, 2:]], dim=1)
            case "interpolated":
                grid = self.position[:, 2:].reshape(1, 2, 3, D).permute(0, 3, 1, 2)
                grid = F.interpolate(grid, size=(3, 2), mode="bilinear").flatten(2).transpose(1, 2)
                h = torch.cat([(self.cls + self.register).expand(b, 2, -1), h + grid], 1)
        h = h * (1.0 + self.gamma)
        return torch.tanh(self.mlp(torch.tanh(h)))


@pytest.mark.parametrize("b", [1, 2, 5])
@pytest.mark.parametrize("how", ["expand", "repeat, in place, cut", "positions first", "joined first", "interpolated"])
def test_vit_like(how: str, b: int) -> None:
    torch.manual_seed(0)
    agrees(ViTLike(how), torch.randn(b if b > 1 else 2, L, 3), chunk=b)


class GPTLike(nn.Module):
    """A table looked up by positions of shape (L,), as in nanoGPT, or (1, L); tied to nothing, padded or not, read twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.tokens, self.positions = nn.Embedding(11, D), nn.Embedding(9, D, padding_idx=1 if how == "padded" else None)
        self.register_buffer("ids", torch.arange(9)[None])
        self.head = nn.Linear(D, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        match self.how:
            case "one row":
                h = h + self.positions(torch.arange(x.shape[1]))
            case "(1, L)" | "padded":
                h = h + self.positions(self.ids[:, : x.shape[1]]).to(h.dtype)
            case "unsqueezed":
                h = h + self.positions(torch.arange(x.shape[1])).unsqueeze(0)
            case "in place":
                h += self.positions(self.ids[:, : x.shape[1]])
            case "twice":
                h = h + self.positions(self.ids[:, : x.shape[1]]) + self.positions(x % 9) + self.positions.weight[: x.shape[1]]
            case "expanded ids":
                h = h + self.positions(self.ids[:, : x.shape[1]].expand(len(x), -1))
            case "checkpointed":
                return checkpoint(lambda h: self.head(torch.tanh(h + self.positions(self.ids[:, : x.shape[1]]))), h, use_reentrant=False)
        return self.head(torch.tanh(h))


@pytest.mark.parametrize("b", [2, 3, 4, 6])
@pytest.mark.parametrize("how", ["one row", "(1, L)", "padded", "unsqueezed", "in place", "twice", "expanded ids", "checkpointed"])
def test_gpt_like(how: str, b: int) -> None:
    """b = 2, 3 and 6 divide the L = 6 positions, so shapes alone do not tell positions from samples."""
    torch.manual_seed(0)
    agrees(GPTLike(how), torch.randint(11, (b, L)))


class RelativeBias(nn.Module):
    """Swin's and T5's tables of relative positions, added to attention scores."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qk, self.v = how, nn.Linear(3, 2 * 2 * 4), nn.Linear(3, 2 * 4)
        self.table = nn.Embedding(2 * L - 1, 2)
        index = torch.arange(L)
        self.register_buffer("index", index[:, None] - index[None, :] + L - 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.how == "swin":
            bias = self.table.weight[self.index.view(-1)].view(L, L, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        else:
            bias = self.table(self.index).permute(2, 0, 1).unsqueeze(0)
        scores = q @ k.transpose(-1, -2) + bias
        return (scores.softmax(-1) @ self.v(x).unflatten(-1, (2, 4)).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("b", [3, 4])
@pytest.mark.parametrize("how", ["swin", "t5"])
def test_relative_positions(how: str, b: int) -> None:
    torch.manual_seed(0)
    agrees(RelativeBias(how), torch.randn(b, L, 3))


class Conv1D(nn.Module):
    """GPT-2's linear layer, by addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 3), self.weight).view(*x.shape[:-1], 5)


def test_addmm() -> None:
    torch.manual_seed(0)
    agrees(nn.Sequential(Conv1D(), nn.Tanh()), torch.randn(4, L, 3))
    dropped = nn.Sequential(Conv1D(), nn.Dropout(0.5)).train()
    assert gsnr.measure(dropped, squares, [{"x": torch.randn(4, L, 3)}], engine="ghost")["all"].n == 4


class Changed(nn.Module):
    """Shared tensors that are changed in place between being made and being used, and other uses that no rule knows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.table, self.scale = how, nn.Embedding(L, D), nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        w = self.table(torch.arange(L)[None])
        match self.how:
            case "multiplied":
                w *= self.scale
            case "a view":
                w[:, 1:].mul_(2.0)
            case "set":
                w[:, 0] = self.scale
            case "not one sample's":
                return x * self.scale.expand(L, -1) + w.flip(1)
            case "matmul":
                return x @ (w[0] + self.scale).view(D, L)
            case "through the samples":
                w = w * x.mean(0, keepdim=True) + self.scale
            case "added up":
                w = w + w + w * self.scale
        return x + w


@pytest.mark.parametrize("how", ["multiplied", "a view", "set", "not one sample's", "matmul", "through the samples", "added up"])
@pytest.mark.filterwarnings("ignore:engine 'vmap'", "ignore:engine 'loop'")
def test_never_wrong(how: str) -> None:
    """Right or refused, by name; and "auto" finds the numbers, or says that samples are coupled."""
    torch.manual_seed(0)
    model, x = Changed(how).double(), torch.randn(3, L, D).double()
    if how == "through the samples":
        with pytest.raises(ValueError, match="coupled"):
            gsnr.measure(model, squares, [{"x": x}])
        return
    reference = naive_gradients(model, squares, {"x": x})
    for engine in ("ghost", "auto"):
        try:
            e = gsnr.measure(model, squares, [{"x": x}], engine=engine)["all"]
        except ValueError as error:
            assert engine == "ghost" and how != "added up"
            assert "parameter '" in str(error) and "\n" not in str(error)
            continue
        np.testing.assert_allclose(e.q_n, (reference**2).sum(1), rtol=1e-9)
        np.testing.assert_allclose(e.r_n, reference @ reference.sum(0), rtol=1e-9)


@pytest.mark.parametrize(("how", "advice"), [("matmul", r"write it as F\.linear"), ("set", "__setitem__; ghost knows")])
def test_messages_say_what_to_change(how: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        gsnr.measure(Changed(how), squares, [{"x": torch.randn(3, L, D)}], engine="ghost")


def test_class_labels_are_no_positions() -> None:
    """Labels 0, 1, 2, ... of a batch look like positions."""
    torch.manual_seed(0)
    agrees(nn.Sequential(nn.Embedding(7, 4), nn.Tanh()), torch.arange(5))


def pretrained(name: str):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"attn_implementation": "eager"}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ids = torch.randint(20, (6, 7))
    match name:
        case "BertModel":
            config = transformers.BertConfig(vocab_size=20, max_position_embeddings=12, **small, **sizes)
            return transformers.BertModel(config), {"input_ids": ids}
        case "GPT2Model":
            config = transformers.GPT2Config(vocab_size=20, n_positions=12, n_embd=16, n_layer=2, n_head=2, **sizes)
            return transformers.GPT2Model(config), {"input_ids": ids}
        case "ViTModel":
            config = transformers.ViTConfig(image_size=8, patch_size=4, **small, **sizes)
            return transformers.ViTModel(config), {"pixel_values": torch.randn(6, 3, 8, 8)}
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["BertModel", "GPT2Model", "ViTModel"])
def test_models_of_transformers(name: str) -> None:
    """Whole, by ghost, with float64 parameters; batches of 1 and 5."""
    model, data = pretrained(name)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    model = model.eval().double()
    data = {key: x.double() if x.is_floating_point() else x for key, x in data.items()}
    loss = lambda m, b: (m(**b).last_hidden_state * torch.linspace(-1, 1, 16, dtype=torch.float64)).square().sum((1, 2))
    batches = [{key: x[a:b] for key, x in data.items()} for a, b in pairwise((0, 1, 6))]
    reference = naive_gradients(model, loss, data)
    result = gsnr.measure(model, loss, batches, engine="ghost")
    np.testing.assert_allclose(result["all"].q_n, (reference**2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(result["all"].r_n, reference @ reference.sum(0), rtol=1e-8)
    assert gsnr.measure(model, loss, batches).engine == "ghost"
