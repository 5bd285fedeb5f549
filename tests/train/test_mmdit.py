"""MMDiT: its size, its block by hand, its null condition bit for bit, taps, per-sample gradients, and what is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gsnr
from gsnr.probes.common import account
from gsnr.train import presets, samplers
from gsnr.train.config import TEXT, ModelConfig, resolve
from gsnr.train.contracts.problem import GROUPS, MODEL, in_views, made, sit
from gsnr.train.convert import conversion, foreign, t2i
from gsnr.train.convert.command import main as convert
from gsnr.train.costing import counts
from gsnr.train.data.batches import flattened
from gsnr.train.guidance import Guidance, velocity_of
from gsnr.train.models.build import build
from gsnr.train.models.mmdit import JointBlock, MMDiT
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective
from gsnr.train.parameter_groups import groups_of
from gsnr.train.runs import checkpoint
from tests.conftest import call
from tests.train.text_problem import SMALL, C, L, mmdit, text_batch

Array = NDArray[np.float64]


def test_sizes() -> None:
    """The counts of REPA's model and of its head, which the spec names."""
    raw = counts.objective_of(resolve(presets.find("mmdit-coco-repa")), "meta")
    assert isinstance(raw.model, MMDiT) and len(raw.model.blocks) == 24
    assert sum(p.numel() for p in raw.model.parameters()) == 505_070_608
    assert sum(p.numel() for p in raw.alignment.parameters()) == 7_344_896
    ahpa = counts.objective_of(resolve(presets.find("mmdit-coco-ahpa")), "meta").alignment
    assert sum(p.numel() for name, p in ahpa.named_parameters() if name.startswith("projector.")) == 7_078_912
    assert resolve(presets.find("mmdit-coco-repa")).model.parameters == pytest.approx(505_070_608, rel=0.02)
    last = {name.split(".", 3)[3].rpartition(".")[0] for name, _ in raw.model.named_parameters() if name.startswith("blocks.23.context.")}
    assert last == {"attn.qkv", "adaLN_modulation.1"}
    assert raw.model.get_parameter("blocks.23.context.adaLN_modulation.1.weight").shape == (2 * 768, 768)


def _norm(h: Array) -> Array:
    centred = h - h.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def _linear(state: dict[str, Array], name: str, h: Array) -> Array:
    return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _gelu(h: Array) -> Array:
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def _by_hand(state: dict[str, Array], streams: dict[str, Array], c: Array, heads: int) -> dict[str, Array]:
    """One sample through a joint block: (tokens, D) of "context" and of "x"; loops over heads and queries."""
    silu = c / (1 + np.exp(-c))
    mods = {name: _linear(state, f"{name}.adaLN_modulation.1", silu).reshape(-1, len(c)) for name in streams}
    qkv = {n: _linear(state, f"{n}.attn.qkv", _norm(h) * (1 + mods[n][1]) + mods[n][0]) for n, h in streams.items()}
    q, k, v = np.concatenate([qkv["context"], qkv["x"]]).reshape(-1, 3, heads, len(c) // heads).transpose(1, 2, 0, 3)
    out = np.zeros((q.shape[1], len(c)))
    width = q.shape[-1]
    for head in range(heads):
        for place in range(q.shape[1]):
            weights = np.exp(k[head] @ q[head, place] / np.sqrt(width))
            out[place, head * width : (head + 1) * width] = weights @ v[head] / weights.sum()
    found, places = {}, {"context": slice(0, len(streams["context"])), "x": slice(len(streams["context"]), None)}
    for n, h in streams.items():
        if len(mods[n]) == 2:
            found[n] = h
            continue
        h = h + mods[n][2] * _linear(state, f"{n}.attn.proj", out[places[n]])
        inside = _gelu(_linear(state, f"{n}.mlp.fc1", _norm(h) * (1 + mods[n][4]) + mods[n][3]))
        found[n] = h + mods[n][5] * _linear(state, f"{n}.mlp.fc2", inside)
    return found


@pytest.mark.parametrize("last", [False, True])
def test_a_joint_block_by_hand(last: bool) -> None:
    torch.manual_seed(0)
    block = JointBlock(8, 2, 4.0, last=last).double()
    x, text, c = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((4, 8), (3, 8), (8,)))
    found_x, found_text = block((x, text), c)
    state = {name: p.detach().numpy() for name, p in block.named_parameters()}
    for b in range(2):
        wanted = _by_hand(state, {"context": text[b].numpy(), "x": x[b].numpy()}, c[b].numpy(), 2)
        for found, name in ((found_x, "x"), (found_text, "context")):
            np.testing.assert_allclose(found[b].detach().numpy(), wanted[name], rtol=0, atol=1e-10)


def test_the_null_condition() -> None:
    """All dropped is the empty caption, bit for bit; some dropped, those alone; and padding attends, so that its order counts too."""
    model, batch = mmdit(), text_batch()
    x, t, y = batch["latent"], batch["t"], model.condition(batch)
    null, all_of_them = model.null(y), torch.ones(4, dtype=torch.bool)
    assert torch.equal(null[2], model.null_text) and null.shape == y.shape
    assert torch.equal(model(x, t, y, all_of_them), model(x, t, null))
    some = torch.tensor([True, False, False, True])
    assert torch.equal(model(x, t, y, some), model(x, t, torch.where(some[:, None, None], null, y)))
    for places in ([1, 0, 2, 3, 4], [0, 1, 2, 4, 3]):
        assert torch.allclose(model(x, t, y[:, places]), model(x, t, y), atol=1e-5), "text has no positions of its own"
    changed = y.clone()
    changed[:, -1] += 1.0
    assert not torch.allclose(model(x, t, changed), model(x, t, y), atol=1e-3)


def test_guidance_asks_the_model() -> None:
    """Weight 1 is the conditional pass; another one is the formula, of either model."""
    for model, y in ((mmdit(), text_batch()[TEXT]), (sit(), torch.tensor([0, 4, 2, 3]))):
        x, t = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.full((4,), 0.4)
        with torch.no_grad():
            conditional, null = model(x, t, y).double(), model(x, t, model.null(y)).double()
            assert torch.equal(velocity_of(model, y, Guidance(weight=1.0))(x, 0.4), conditional)
            assert torch.equal(velocity_of(model, y, Guidance(weight=2.0))(x, 0.4), null + 2 * (conditional - null))
            noise = samplers.noise_of(0, np.arange(4), (4, 4, 4))
            one, other = (samplers.integrate("euler", velocity_of(model, y, by), noise(0), 3, noise) for by in (None, Guidance()))
        assert torch.equal(one, other)
    assert torch.equal(sit().null(torch.tensor([0, 4])), torch.tensor([5, 5]))


def test_taps() -> None:
    """Tap k is the first k blocks alone; `stop` runs none above; -k is the patches' queries, keys and values."""
    model, batch = mmdit(), text_batch()
    x, t, y = batch["latent"], batch["t"], batch[TEXT]
    ran: list[int] = []
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    velocity, hidden = model.forward_with_taps(x, t, y, taps=(2, -1), stop=True)
    assert velocity is None and ran == [1, 2] and hidden[2].shape == (4, 4, 8) and hidden[-1].shape == (4, 4, 24)
    streams, c = (model.x_embedder(x) + model.pos_embed, model.context_embedder(y)), model.t_embedder(t)
    for block in list(model.blocks)[:2]:
        streams = block(streams, c)
    assert torch.equal(streams[0], hidden[2])
    whole, same = model.forward_with_taps(x, t, y, taps=(2, 3))
    assert whole is not None and torch.equal(same[2], hidden[2])
    assert torch.equal(whole, model(x, t, y)) and torch.equal(model.unpatchify(model.final_layer(same[3], c)), whole)
    model.checkpointing = True
    assert torch.equal(model(x, t, y), whole)
    with pytest.raises(ValueError, match="tap 4 does not exist"):
        model.forward_with_taps(x, t, y, taps=(4,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": torch.zeros(4, 3)}, "extra: an MMDiT has no extra token"),
        ({"replaced": {1: torch.zeros(4, 4, 16)}}, "replaced: an MMDiT"),
        ({"y": torch.zeros(4, L + 1, C)}, "y: text of shape"),
        ({"y": torch.zeros(4, dtype=torch.int64)}, "y: text of shape"),
    ],
)
def test_refused_by_the_model(change: dict[str, Any], said: str) -> None:
    batch = text_batch()
    with pytest.raises(ValueError, match=said):
        mmdit().forward_with_taps(**({"x": batch["latent"], "t": batch["t"], "y": batch[TEXT]} | change))


def objective(name: str, **options: object) -> Objective:
    return Objective(mmdit(), made(name, SMALL, GROUPS, **options))


@pytest.mark.parametrize("name", ["repa", "ahpa", "sra", "sra2", "layersync", "spare"])
def test_every_parameter_learns(name: str) -> None:
    """Of the velocity and the alignment loss together."""
    raw = objective(name, **({"projector_width": 16} if name == "repa" else {}))
    batch = raw.alignment.prepare(in_views(text_batch(), raw.alignment.views), mmdit(3))
    found = raw(batch)
    sum(loss.mean() for loss in found.values()).backward()
    lacking = [key for key, p in raw.named_parameters() if p.grad is None]
    assert not lacking and found["align"].shape == (4,)


def test_views_of_an_image_share_its_text() -> None:
    rows = flattened(in_views(text_batch(), 2))
    assert rows[TEXT].shape == (8, L, C) and torch.equal(rows[TEXT][2], rows[TEXT][3]) and torch.equal(rows[TEXT][2], text_batch()[TEXT][1])


def _loss(name: str) -> Callable[[torch.nn.Module, dict[str, Tensor]], Tensor]:
    return lambda model, batch: model(batch)[name]


@pytest.mark.parametrize("name", ["velocity", "align"])
def test_the_engines_agree(name: str) -> None:
    """Per-sample gradients of every layer, against one backward pass a sample, by groups."""
    raw, batch = objective("repa", projector_width=16), text_batch()
    label = lambda key: groups_of(key.partition(".")[2]) if key.startswith("model.") else ("projector",)
    found = {engine: gsnr.measure(raw, _loss(name), [batch], engine=engine, groups=label) for engine in ("ghost", "loop")}
    groups = found["loop"].groups
    assert {"backbone", "text", "block 1", "x of block 1", "context of block 1", "attention", "MLP", "adaLN", "embedders"} <= set(groups)
    for group in groups:
        one, two = (found[engine][group] for engine in ("ghost", "loop"))
        assert (one.signal, one.noise) == pytest.approx((two.signal, two.noise), rel=1e-4, abs=1e-10), group


def test_the_account_of_a_probe_counts_its_products() -> None:
    """Of layers and attention, against those that torch counts."""
    model, batch = mmdit().to("meta"), {key: x.to("meta") for key, x in text_batch().items()}
    with FlopCounterMode(display=False) as counter:
        model(batch["latent"], batch["t"], batch[TEXT])
    products = sum(t * d * p for t, d, p in account._layers(model, 3, whole=True)) + 3 * 2 * (4 + L) ** 2 * 8
    assert counter.get_total_flops() == 2 * 4 * products


def test_groups() -> None:
    assert groups_of("blocks.2.context.attn.qkv.weight") == ("backbone", "block 3", "context of block 3", "attention")
    assert groups_of("blocks.2.x.mlp.fc1.bias", 3) == ("backbone", "block 3", "x of block 3", "MLP") and groups_of("blocks.2.x.mlp.fc1.bias", 2) == ()
    assert groups_of("context_embedder.weight") == ("text",) and groups_of("y_embedder.embedding_table.weight") == ("label",)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    zero = build(replace(SMALL, init_rule="adaln_zero"))
    batch = text_batch()
    assert not zero(batch["latent"], batch["t"], batch[TEXT]).any() and zero.get_parameter("blocks.0.x.attn.qkv.weight").any()
    assert build(SMALL)(batch["latent"], batch["t"], batch[TEXT]).any()
    assert isinstance(build(MODEL), SiT)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"kind": "mmdit", "num_classes": 10}}, "--model.num-classes 10: is of --model.kind sit"),
        ({"model": {"kind": "mmdit", "residual": "dar"}}, "--model.residual dar: is of --model.kind sit"),
        ({"model": {"kind": "mmdit", "extra_token": 7}}, "--model.extra-token 7: is of --model.kind sit"),
        ({"model": {"text_width": 7}}, "--model.text-width 7: is of --model.kind mmdit"),
        ({"model": {"kind": "mmdit", "hidden_size": 768, "num_heads": 24}, "alignment": {"name": "repi"}}, "--alignment repi: gives a block keys"),
        ({"model": {"kind": "dit"}}, "'dit' does not exist"),
    ],
)
def test_refused_options(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve(values)


def test_presets() -> None:
    for name, tap in (("mmdit-coco-repa", 8), ("mmdit-coco-sra2", 8), ("mmdit-coco-ahpa", 8), ("mmdit-demo-repa", 1), ("mmdit-demo-ahpa", 1)):
        assert resolve(presets.find(name)).alignment["tap"] == tap
    config = resolve(presets.find("mmdit-coco"))
    assert (config.optim.lr, config.optim.clip, config.optim.ema, config.batch, config.steps) == (1e-4, 1.0, 0.9999, 256, 150_000)
    assert config.model.reads == (TEXT,) and config.label_dropout == 0.1


def theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state under REPA's names."""
    found = {name: x for name, x in state.items() if name != "null_text"}
    return {re_named(name): x for name, x in found.items()}


def re_named(name: str) -> str:
    if not name.startswith("blocks."):
        return name
    _, number, stream, rest = name.split(".", 3)
    return f"joint_blocks.{number}.{stream}_block.{rest}"


def test_a_checkpoint_of_repa(tmp_path: Path) -> None:
    """Both weights are the same function; the empty caption is given."""
    shape = {"input_size": 4, "hidden_size": 12, "depth": 3, "num_heads": 3, "text_width": C, "text_tokens": L}
    torch.manual_seed(0)
    raw, ema = (MMDiT(**shape) for _ in range(2))
    states = {"model": raw.state_dict(), "ema": ema.state_dict()}
    for state in states.values():
        state.update({name: torch.randn_like(x) for name, x in state.items() if name not in ("pos_embed", "null_text")})
    path = tmp_path / "0000070.pt"
    shapes = {"0": (16, 12), "2": (16, 16), "4": (7, 16)}
    head = {f"projectors.0.{i}.weight": torch.randn(wide) for i, wide in shapes.items()}
    head |= {f"projectors.0.{i}.bias": torch.randn(wide[:1]) for i, wide in shapes.items()}
    args = argparse.Namespace(path_type="linear", encoder_depth=2, proj_coeff=0.5)
    torch.save({key: theirs(state) | head for key, state in states.items()} | {"args": args, "steps": 70}, path)
    np.save(tmp_path / "empty.npy", np.ones((L, C), dtype=np.float32))
    found = foreign.read(path, "repa-t2i")
    with pytest.raises(ValueError, match=r"--null-text: .* reads text: name the empty caption"):
        conversion.make_plan(found)
    plan = conversion.make_plan(found, None, t2i.null_text(tmp_path / "empty.npy"))
    words = ("--ckpt", path, "--from", "repa-t2i", "--null-text", tmp_path / "empty.npy", "--out", tmp_path / "ours")
    assert call(convert, *words) == 0
    stored = {weights: checkpoint.load(tmp_path / "ours", weights) for weights in ("raw", "ema")}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--null-text: convert the file first"):
        call(convert, *words, "--to", "pipeline")
    batch = text_batch()
    for weights, model in (("raw", raw), ("ema", ema)):
        loaded = conversion.load(found, plan, weights)  # type: ignore[arg-type]
        model.load_state_dict(states["model" if weights == "raw" else "ema"])
        assert torch.equal(loaded.model(batch["latent"], batch["t"], batch[TEXT]), model(batch["latent"], batch["t"], batch[TEXT]))
        assert torch.equal(loaded.model.state_dict()["null_text"], torch.ones(L, C)) and (loaded.step, loaded.weights) == (70, weights)
        same = stored[weights].model(batch["latent"], batch["t"], batch[TEXT])
        assert torch.equal(same, model(batch["latent"], batch["t"], batch[TEXT])) and stored[weights].config.model == plan.config.model
        assert torch.equal(loaded.alignment.state_dict()["projector.mlp.4.bias"], head["projectors.0.4.bias"]) and loaded.alignment.tap == 2


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.ones((L, C - 1), dtype=np.float32))
    np.save(tmp_path / "flat.npy", np.ones(C, dtype=np.float32))
    model = MMDiT(input_size=4, hidden_size=12, depth=3, num_heads=3, text_width=C, text_tokens=L).state_dict()
    torch.save({"ema": theirs(model) | {"joint_blocks.0.x_block.attn.ln_q.weight": torch.ones(4)}}, tmp_path / "odd.pt")
    torch.save({"ema": {name: x for name, x in theirs(model).items() if name != "context_embedder.weight"}}, tmp_path / "less.pt")
    odd = foreign.read(tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"has an unexpected tensor 'blocks.0.x.attn.ln_q.weight'"):
        conversion.load(odd, conversion.make_plan(odd, None, torch.ones(L, C)), "ema")
    with pytest.raises(ValueError, match=r"lacks context_embedder.weight"):
        foreign.read(tmp_path / "less.pt")
    with pytest.raises(ValueError, match=f"states of {C - 1} channels"):
        conversion.make_plan(odd, None, t2i.null_text(tmp_path / "narrow.npy"))
    for name in ("flat.npy", "odd.pt", "none.npy"):
        with pytest.raises(ValueError, match=rf"--null-text .*{name}"):
            t2i.null_text(tmp_path / name)


def test_a_model_without_text_needs_no_null_text() -> None:
    assert ModelConfig().reads == () and "null_text" not in sit().state_dict()
