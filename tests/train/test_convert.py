"""Checkpoints of SiT, REPA, iREPA and SRA: the same function here as in a model written from the papers; safe to read; refused where not ours."""

from __future__ import annotations

import copy
import json
import os
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gsnr
from gsnr import table
from gsnr.probes.common.command import main as probe
from gsnr.train.convert import conversion, foreign
from gsnr.train.convert.command import main
from gsnr.train.demo.cache import demo_cache
from gsnr.train.runs import checkpoint
from tests.conftest import call
from tests.train.foreign_files import CHANNELS, CLASSES, MODEL, SIDE, WIDTH, Layer, Reference, ap_head, mlp, pair, positions, write

REPA = {"encoder_depth": 2, "proj_coeff": 0.5, "enc_type": "dinov2-vit-b", "path_type": "linear", "prediction": "v"}
IREPA = REPA | {
    "projection_layer_type": "conv",
    "spnorm_method": "zscore",
    "zscore_alpha": 0.7,
    "projection_loss_type": "cosine",
    "proj_coeff": "1.0",
}
SRA = {"block_out_s": 1, "block_out_t": 3, "t_max": 0.1, "loss_type": "sml1", "path_type": "linear", "prediction": "v"}
SIT = {"image_size": 64, "num_classes": CLASSES, "path_type": "Linear", "prediction": "velocity"}


def projectors(*heads: nn.Module) -> Callable[[], dict[str, nn.Module]]:
    """Fresh ones at every call."""
    return lambda: {"projectors": nn.ModuleList(copy.deepcopy(h) for h in heads)}


def headless_mlp() -> nn.Module:
    """REPA's projector where it runs without a teacher: no output channels."""
    head = mlp()
    head[4].weight, head[4].bias = nn.Parameter(torch.zeros(0, 24)), nn.Parameter(torch.zeros(0))
    return head


# format -> (output channels, heads, the run's options)
FORMATS: dict[str, tuple[int, Any, dict[str, Any]]] = {
    "sit": (2 * CHANNELS, None, SIT),
    "repa": (CHANNELS, projectors(mlp()), REPA),
    "irepa": (CHANNELS, projectors(Layer(nn.Conv2d(WIDTH, 20, 3, padding=1))), IREPA),
    "sra": (CHANNELS, lambda: {"ap_head": ap_head()}, SRA),
}


def made(kind: str, path: Path, patch: int = 1, **changes: Any) -> tuple[Reference, Reference]:
    """A file of that format, and the models in it."""
    outputs, heads, args = FORMATS[kind]
    raw, ema = pair(patch, outputs, heads)
    prefix = "_orig_mod.module." if kind == "irepa" else ""
    write(path, raw, ema, prefix=prefix, steps=None if kind == "sit" else 12, **(args | changes))
    return raw, ema


@pytest.fixture
def repa_file(tmp_path: Path) -> Path:
    made("repa", tmp_path / "f.pt")
    return tmp_path / "f.pt"


def samples() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, CHANNELS, SIDE, SIDE, generator=g), torch.tensor([0.0, 0.3, 0.9, 1.0]), torch.tensor([0, 3, 9, 10])


def expected_velocity(reference: Reference, kind: str) -> Tensor:
    """In float64. SiT: t = 1 is data, and its velocity data - noise is the negative of ours."""
    x, t, y = samples()
    reference = copy.deepcopy(reference).double()
    with torch.no_grad():
        if kind == "sit":
            return -reference(x.double(), 1 - t.double(), y)[0][:, :CHANNELS]
        return reference(x.double(), t.double(), y)[0]


def assert_same_function(model: nn.Module, reference: Reference, kind: str) -> None:
    """1e-5: float32 against float64; the velocity is of the order 1."""
    with torch.no_grad():
        v = model(*samples())
    expected = expected_velocity(reference, kind)
    assert expected.std() > 0.3
    torch.testing.assert_close(v.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_function(kind: str, patch: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Averaged and raw weights, recognised by themselves; state.json says where they are from."""
    file = tmp_path / "my-run" / "checkpoints" / "0000012.pt"
    raw, ema = made(kind, file, patch)
    assert call(main, "--ckpt", file, "--out", tmp_path / "out", "--model", MODEL.replace("/1", f"/{patch}")) == 0
    assert f"read as {kind} (t = 1 is " in capsys.readouterr().out.splitlines()[0]
    assert_same_function(gsnr.load_model(tmp_path / "out"), ema, kind)
    assert_same_function(gsnr.load_model(tmp_path / "out", "raw"), raw, kind)
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.step == 12 and loaded.header is None and loaded.latent_scale == (None if kind == "irepa" else 0.18215)
    origin = json.loads((tmp_path / "out" / "state.json").read_text())["converted"]
    found = foreign.read(file)
    assert (origin["from"], origin["sha256"], found.run_name) == (kind, found.sha, "my-run")
    assert origin["args"] == FORMATS[kind][2]


def test_time_matters_to_the_reference(tmp_path: Path) -> None:
    """Or a forgotten reversal would pass."""
    _, ema = made("sit", tmp_path / "f.pt")
    x, t, y = samples()
    with torch.no_grad():
        assert (ema(x, t, y)[0] - ema(x, 1 - t, y)[0]).abs().max() > 0.1


@pytest.mark.parametrize("kind", FORMATS)
def test_tensors_come_through_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """All but the three that the reversal of time turns; the averaged table of positions too, drift included."""
    raw, ema = made(kind, tmp_path / "f.pt")
    call(main, "--ckpt", tmp_path / "f.pt", "--out", tmp_path / "out", "--model", MODEL)
    turned = {"t_embedder.mlp.0.weight", "final_layer.linear.weight", "final_layer.linear.bias"} if kind == "sit" else set()
    for weights, reference in (("ema", ema), ("raw", raw)):
        theirs, ours = reference.state_dict(), checkpoint.load(tmp_path / "out", weights).model.state_dict()
        assert turned < ours.keys() <= theirs.keys()
        for name in ours.keys() - turned:
            assert torch.equal(ours[name], theirs[name]), name


def test_the_reversal_inverts(tmp_path: Path) -> None:
    """By R, written out as a matrix: W R R^-1 = W to 1e-6; the kept rows of the last layer are the first channels of each cell, negated."""
    _, ema = made("sit", tmp_path / "f.pt", patch=2)
    call(main, "--ckpt", tmp_path / "f.pt", "--out", tmp_path / "out", "--model", MODEL.replace("/1", "/2"))
    theirs, ours = ema.state_dict(), gsnr.load_model(tmp_path / "out").state_dict()
    f = 10000.0 ** (-np.arange(128) / 128)
    r = np.block([[np.diag(np.cos(f)), np.diag(np.sin(f))], [np.diag(np.sin(f)), -np.diag(np.cos(f))]])
    t = 0.37
    np.testing.assert_allclose(
        r @ np.concatenate([np.cos(f * t), np.sin(f * t)]), np.concatenate([np.cos(f * (1 - t)), np.sin(f * (1 - t))]), atol=1e-12
    )
    name = "t_embedder.mlp.0.weight"
    np.testing.assert_allclose(np.linalg.solve(r.T, ours[name].double().numpy().T).T, theirs[name].numpy(), atol=1e-6)
    torch.testing.assert_close(conversion.reverse_time(ours[name]), theirs[name], rtol=0, atol=1e-6)
    kept = [cell * 2 * CHANNELS + channel for cell in range(4) for channel in range(CHANNELS)]
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        assert torch.equal(-ours[name], theirs[name][kept])


def test_a_flat_file_and_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As SiT is published: tensors alone, taken for the averaged ones. Half precision is widened, which is exact."""
    _, ema = made("sit", tmp_path / "dict.pt")
    torch.save(ema.half().state_dict(), tmp_path / "flat.pt")
    assert call(main, "--ckpt", tmp_path / "flat.pt", "--out", tmp_path / "out", "--model", MODEL) == 0
    assert "nothing in it tells SiT from DiT" in capsys.readouterr().out
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.step == 0
    assert_same_function(loaded.model, ema, "sit")
    with pytest.raises(ValueError, match=r"model.diffusion_pytorch_model.safetensors: missing"):
        checkpoint.load(tmp_path / "out", "raw")


def test_a_file_from_a_gpu_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pickle says cuda:0 of every storage."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    _, ema = made("repa", tmp_path / "f.pt")
    monkeypatch.undo()
    assert b"cuda:0" in (tmp_path / "f.pt").read_bytes()
    found = foreign.read(tmp_path / "f.pt")
    assert_same_function(conversion.load(found, conversion.make_plan(found, MODEL), "ema").model, ema, "repa")


def test_old_repa_splits_its_blocks(tmp_path: Path) -> None:
    """decoder_blocks.j is block j + encoder_depth, which follows from the number of blocks before them: the tap is known without args."""
    _, ema = made("repa", tmp_path / "new.pt")
    old = {re.sub(r"^blocks\.2", "decoder_blocks.0", name): value for name, value in ema.state_dict().items()}
    torch.save(old, tmp_path / "step-7.pt")
    call(main, "--ckpt", tmp_path / "step-7.pt", "--out", tmp_path / "out", "--model", MODEL)
    loaded = checkpoint.load(tmp_path / "out")
    assert (loaded.step, loaded.alignment.taps) == (7, (2,))
    assert_same_function(loaded.model, ema, "repa")
    torch.save({"ema": old, "args": Namespace(encoder_depth=1)}, tmp_path / "lies.pt")
    with pytest.raises(ValueError, match="args say encoder_depth 1, its decoder_blocks start after block 2"):
        foreign.read(tmp_path / "lies.pt")


def projection(kind: str, s: dict[str, Tensor], h_BTD: Tensor) -> Tensor:
    """A file's head on a hidden state, from its tensors alone."""

    def linear(h: Tensor, name: str) -> Tensor:
        return h @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    if kind == "repa":
        return linear(F.silu(linear(F.silu(linear(h_BTD, "projectors.0.0")), "projectors.0.2")), "projectors.0.4")
    if kind == "sra":
        return linear(F.silu(linear(h_BTD, "ap_head.linear1")), "ap_head.linear2")
    w, b = (s[f"projectors.0.projection_layer.{leaf}"] for leaf in ("weight", "bias"))
    grid = F.pad(h_BTD.view(len(h_BTD), SIDE, SIDE, WIDTH), (0, 0, 1, 1, 1, 1))
    shifted = [grid[:, i : i + SIDE, j : j + SIDE] @ w[:, :, i, j].T for i in range(3) for j in range(3)]
    return (torch.stack(shifted).sum(0) + b).flatten(1, 2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("repa", {"name": "repa", "tap": 2, "weight": 0.5, "projector_width": 24, "class_token": False}),
        ("irepa", {"name": "irepa", "tap": 2, "weight": 1.0, "projector": "conv3x3", "gamma": 0.7}),
        ("sra", {"name": "sra", "tap": 1, "weight": 0.2, "teacher_tap": 3, "offset": 0.1, "loss": "smooth_l1"}),
    ],
)
def test_heads_project_as_in_the_file(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """At the tap that the run was started with, on the hidden state of the reference, in both sets of weights."""
    raw, ema = made(kind, tmp_path / "f.pt")
    call(main, "--ckpt", tmp_path / "f.pt", "--out", tmp_path / "out", "--model", MODEL)
    for weights, reference in (("ema", ema), ("raw", raw)):
        loaded = checkpoint.load(tmp_path / "out", weights)
        assert loaded.config.alignment == options and loaded.groups == ({} if kind == "sra" else {"teacher": (1, 20, SIDE, SIDE)})
        (tap,) = loaded.alignment.taps
        with torch.no_grad():
            expected = projection(kind, reference.state_dict(), reference(*samples())[1][tap - 1])
            _, hidden = loaded.model.forward_with_taps(*samples(), taps=(tap,))
            torch.testing.assert_close(loaded.alignment.projector(hidden[tap]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "head", "changes", "options"),
    [
        ("irepa", Layer(nn.Conv2d(WIDTH, 20, 1)), {}, {"name": "irepa", "projector": "conv1x1"}),
        ("irepa", Layer(nn.Linear(WIDTH, 20)), {}, {"name": "irepa", "projector": "linear"}),
        ("irepa", Layer(mlp(width=2048)), {}, {"name": "irepa", "projector": "repa"}),
        ("irepa", Layer(mlp()), {"spnorm_method": "none"}, {"name": "repa", "projector_width": 24}),
    ],
)
def test_other_heads_of_irepa(kind: str, head: nn.Module, changes: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    args = FORMATS[kind][2]
    raw, ema = pair(heads=projectors(head))
    write(tmp_path / "f.pt", raw, ema, **(args | changes))
    found = foreign.read(tmp_path / "f.pt")
    loaded = conversion.load(found, conversion.make_plan(found, MODEL), "ema")
    assert options.items() <= loaded.config.alignment.items()
    with torch.no_grad():
        h = torch.randn(2, SIDE * SIDE, WIDTH)
        layer = ema.projectors[0].projection_layer
        on_grid = layer(h.mT.unflatten(2, (SIDE, SIDE))).flatten(2).mT if isinstance(layer, nn.Conv2d) else layer(h)
        torch.testing.assert_close(loaded.alignment.projector(h), on_grid, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "heads", "changes", "reason"),
    [
        ("repa", projectors(mlp(), mlp()), {}, "one MLP of three layers"),
        ("repa", projectors(nn.Sequential(nn.Linear(WIDTH, 20))), {}, "one MLP of three layers"),
        ("repa", projectors(headless_mlp()), {}, "without a teacher"),
        ("irepa", projectors(Layer(nn.Conv2d(WIDTH, 20, 5, padding=2))), {}, r"last layer of shape \(20, 32, 5, 5\)"),
        ("irepa", projectors(Layer(nn.Conv2d(WIDTH, 20, 3))), {"spnorm_method": "none"}, "spnorm_method none"),
        ("irepa", projectors(Layer(mlp())), {}, "with spnorm_method zscore"),
        ("irepa", projectors(Layer(nn.Conv2d(WIDTH, 20, 3))), {"projection_loss_type": "cosine,mse"}, "another loss than cosine"),
        ("irepa", projectors(Layer(nn.Linear(WIDTH, 20)), Layer(nn.Linear(WIDTH, 20))), {}, "one projection_layer"),
        ("sra", lambda: {"ap_head": ap_head()}, {"loss_type": "cos"}, "loss_type cos"),
        ("sra", lambda: {"ap_head": nn.ModuleDict({"linear1": nn.Linear(WIDTH, WIDTH)})}, {}, "linear1 and linear2"),
    ],
)
def test_a_head_that_is_not_ours_is_left_behind_and_said(
    kind: str, heads: Any, changes: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw, ema = pair(heads=heads)
    write(tmp_path / "f.pt", raw, ema, **(FORMATS[kind][2] | changes))
    call(main, "--ckpt", tmp_path / "f.pt", "--out", tmp_path / "out", "--model", MODEL)
    assert re.search(f"its head is left behind, alignment none: .*{reason}", capsys.readouterr().out)
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.config.alignment["name"] == "none"
    assert_same_function(loaded.model, ema, kind)


def test_what_a_file_does_not_tell_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, ema = made("repa", tmp_path / "dict.pt")
    torch.save(ema.state_dict(), tmp_path / "last.pt")
    call(main, "--ckpt", tmp_path / "last.pt", "--out", tmp_path / "out", "--model", MODEL)
    said = capsys.readouterr().out
    assert "it does not tell encoder_depth, proj_coeff; the defaults of our repa are taken" in said and "alignment repa at block 1" in said
    assert "20 channels of the teacher (not named)" in said


def test_a_backbone_alone_may_run_either_way(tmp_path: Path) -> None:
    """Without heads and learn_sigma, SiT's and REPA's files look the same: args tell, else --from has to."""
    _, ema = pair()
    torch.save(ema.state_dict(), tmp_path / "f.pt")
    with pytest.raises(ValueError, match=r"a backbone alone.*say which to gsnr convert --from"):
        foreign.read(tmp_path / "f.pt")
    for kind in FORMATS:
        found = foreign.read(tmp_path / "f.pt", kind)
        assert_same_function(conversion.load(found, conversion.make_plan(found, MODEL), "ema").model, ema, kind)
    for kind, (_, _, args) in FORMATS.items():
        write(tmp_path / "args.pt", ema, ema, **args)
        assert foreign.read(tmp_path / "args.pt").kind == kind
    with pytest.raises(ValueError, match="--from sit, but it is sra's by its tensors or args"):
        foreign.read(tmp_path / "args.pt", "sit")


def fails(match: str, *words: str | Path, out: Path) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        call(main, *words, "--out", out)
    assert "\n" not in str(caught.value)
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))


class Hostile:
    """Unpickled by Python, it writes a file; so it does by whatever calls what a pickle names."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["ema", "args"])
def test_a_hostile_pickle_is_refused_and_not_run(where: str, protocol: int, tmp_path: Path) -> None:
    _, ema = pair()
    hostile, target, file = Hostile(tmp_path / "owned"), tmp_path / "owned", tmp_path / "f.pt"
    content = {"ema": hostile} if where == "ema" else {"ema": ema.state_dict(), "args": Namespace(data=hostile)}
    torch.save(content, file, pickle_protocol=protocol)
    fails(
        r"refused, and nothing in it was run: it needs posix\.system;"
        if protocol == 2
        else "damaged, or not pickled as torch.save does by default; nothing in it was run",
        "--ckpt",
        file,
        out=tmp_path / "out",
    )
    with pytest.raises(ValueError, match=r"refused|damaged"):
        call(probe, "--ckpt", file, "--data", "demo", "--out", tmp_path / "out")
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists(), "the file is hostile indeed"


def test_objects_that_are_not_allowed_are_named(tmp_path: Path) -> None:
    _, ema = pair()
    torch.save({"ema": ema.state_dict(), "args": Namespace(out=tmp_path, n=np.float64(3))}, tmp_path / "f.pt")
    fails(r"it needs numpy.*, pathlib.*save its 'model' and 'ema' into a new one", "--ckpt", tmp_path / "f.pt", out=tmp_path / "out")


def test_damaged_files_and_files_of_something_else(repa_file: Path, tmp_path: Path) -> None:
    whole, out = repa_file.read_bytes(), tmp_path / "out"

    def refused(match: str, content: Any, *words: str) -> None:
        file = tmp_path / "other.pt"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        fails(match, "--ckpt", file, *words, out=out)

    fails("nothing.pt: no such file", "--ckpt", tmp_path / "nothing.pt", out=out)
    fails(": a folder, which goes with", "--ckpt", tmp_path, out=out)
    for cut in (0, 100, len(whole) // 2, len(whole) - 30):
        refused("truncated, or not a checkpoint of torch.save", whole[:cut])
    refused("truncated, or not a checkpoint of torch.save", b"weights, honestly")
    middle = whole.index(b"data.pkl") + 200
    refused("damaged, or not pickled as torch.save", whole[:middle] + b"\xff" * 50 + whole[middle + 50 :])
    refused("holds no weights where .* it holds list", [1, 2])
    refused("it holds state_dict, epoch", {"state_dict": {"a": torch.zeros(1)}, "epoch": 3})
    refused(
        "no format that is known: lacks x_embedder.proj.weight; looked for .*ap_head.linear1.* it has conv.weight", {"conv.weight": torch.zeros(2, 2)}
    )
    fails("--from 'dit' does not exist; choose from auto, sit, repa, irepa, sra, reg, repa-t2i", "--ckpt", repa_file, "--from", "dit", out=out)
    for kind in ("sit", "sra", "irepa"):
        fails(f"--from {kind}, but it is repa's by its tensors or args", "--ckpt", repa_file, "--from", kind, out=out)


def _with(**tensors: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {name.replace("__", "."): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("match", "change", "args"),
    [
        (r"lacks cls_projectors2.weight; looked for .* .REG.", _with(final_layer__linear_cls__weight=torch.zeros(2, 2)), {}),
        (r"lacks cls_projectors2.weight; looked for .* .REG.", _with(wg_norm__weight=torch.zeros(2)), {}),
        (r"trained with qk_norm \(blocks.0.attn.q_norm.weight\)", _with(blocks__0__attn__q_norm__weight=torch.zeros(2)), {}),
        ("has an unexpected tensor 'rope.freqs'", _with(rope__freqs=torch.zeros(2)), {}),
        (r"tensor 'bn.count' is no array of float32 or half precision .torch.int64", _with(bn__count=torch.zeros(2, dtype=torch.int64)), {}),
        ("pos_embed is not the sinusoidal table of a 8x8 grid", _with(pos_embed=positions(SIDE, WIDTH).float()[None] + 0.01), {}),
        ("'pos_embed' has shape .1, 65, 32.", _with(pos_embed=torch.zeros(1, 65, WIDTH)), {}),
        ("lacks tensor 'blocks.1.attn.qkv.bias'", lambda s: {k: v for k, v in s.items() if k != "blocks.1.attn.qkv.bias"}, {}),
        ("12 output channels for latents of 4", _with(final_layer__linear__weight=torch.zeros(12, WIDTH)), {}),
        ("trained on the path 'cosine'", None, {"path_type": "cosine"}),
        ("predicts 'noise', not the velocity", None, {"prediction": "noise"}),
        ("a DiT by its name", None, {"model": "DiT-XL/2"}),
        ("11 label embeddings for 11 classes", None, {"num_classes": 11}),
        ("alignment.tap 9: this model has blocks 1 to 3", None, {"encoder_depth": 9}),
        ("alignment.tap: 'x' is not of type", None, {"encoder_depth": "x"}),
    ],
)
def test_another_function_is_refused(match: str, change: Any, args: dict[str, Any], tmp_path: Path) -> None:
    _, ema = made("repa", tmp_path / "f.pt")
    state = change(ema.state_dict()) if change else ema.state_dict()
    torch.save({"ema": state, "args": Namespace(**(REPA | args))}, tmp_path / "f.pt")
    fails(match, "--ckpt", tmp_path / "f.pt", "--model", MODEL, out=tmp_path / "out")


def test_shapes_that_no_sit_has(repa_file: Path, tmp_path: Path) -> None:
    """Of SiT's own format, whose time is reversed and whose last layer is cut before shapes are compared."""
    _, ema = made("sit", tmp_path / "f.pt")
    for name, shape in (("t_embedder.mlp.0.weight", (WIDTH, 128)),):
        torch.save({"ema": ema.state_dict() | {name: torch.zeros(shape)}}, tmp_path / "f.pt")
        fails("its t_embedder.mlp.0 or final_layer.linear has a shape", "--ckpt", tmp_path / "f.pt", "--model", MODEL, out=tmp_path / "out")
    fails("a folder, which goes with --resolution or --to pipeline", "--ckpt", tmp_path, out=tmp_path / "out")
    fails("--model '' does not exist", "--ckpt", repa_file, "--model", "", out=tmp_path / "out")


def test_sizes_and_names(repa_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails(r"depth 3 and width 32 are of no published SiT.*add --model SiT-3x32xHEADS/1", "--ckpt", repa_file, out=out)
    fails(r"\(depth, width, patch\) are \(3, 32, 1\), those of --model SiT-B/2 \(12, 768, 2\)", "--ckpt", repa_file, "--model", "SiT-B/2", out=out)
    fails("'SiT-3x32x0/1' does not exist; choose from SiT-S/2, SiT-B/2, SiT-L/2, SiT-XL/2", "--ckpt", repa_file, "--model", "SiT-3x32x0/1", out=out)
    fails("must be a multiple of num_heads 5", "--ckpt", repa_file, "--model", "SiT-3x32x5/1", out=out)
    made("repa", tmp_path / "named.pt", model=MODEL)
    assert foreign.read(tmp_path / "named.pt").architecture(None).num_heads == 2
    made("repa", tmp_path / "misnamed.pt", model="SiT-XL/2")
    fails("those of its args' SiT-XL/2 .28, 1152, 2.", "--ckpt", tmp_path / "misnamed.pt", out=out)


@pytest.mark.parametrize(("name", "width", "depth", "heads"), [("S", 384, 12, 6), ("B", 768, 12, 12), ("L", 1024, 24, 16), ("XL", 1152, 28, 16)])
def test_published_sizes_need_no_name(name: str, width: int, depth: int, heads: int) -> None:
    """From shapes alone: S, B, L and XL (SiT Table 1)."""
    shapes = {
        "x_embedder.proj.weight": (width, 4, 2, 2),
        "pos_embed": (1, 256, width),
        "y_embedder.embedding_table.weight": (1001, width),
        "final_layer.linear.weight": (32, width),
        **{f"blocks.{i}.mlp.fc1.weight": (4 * width, width) for i in range(depth)},
    }
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = foreign.Foreign(path=Path("f.pt"), kind="sit", step=0, args={}, states={"ema": state})
    model = found.architecture(None)
    assert (model.num_heads, model.depth, model.input_size, model.patch_size, model.num_classes, model.mlp_ratio) == (heads, depth, 32, 2, 1000, 4)
    assert found.architecture(f"SiT-{name}/2") == model


def test_nothing_is_written_over(repa_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for out, match in ((tmp_path / "mine", "exists; name a new folder"), (Path("/proc/x"), "--out /proc/x: cannot be written")):
        with pytest.raises(ValueError, match=match):
            call(main, "--ckpt", repa_file, "--model", MODEL, "--out", out)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.fixture(scope="module")
def cache() -> Path:
    return demo_cache(256, 256, "adaptive")


@pytest.fixture(scope="module")
def teacher_channels(cache: Path) -> int:
    return json.loads((cache / "gsnr_cache.json").read_text())["groups"]["teacher"][1]


SHORT = ("--bins", 1, "--n-images", 8, "--fit-samples", 128, "--fit-steps", 3)


@pytest.mark.parametrize(("kind", "weights"), [("sit", "ema"), ("repa", "raw"), ("irepa", "ema"), ("sra", "raw")])
def test_a_file_is_probed_as_its_converted_folder(
    kind: str, weights: str, cache: Path, teacher_channels: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The same table to the last bit, but for the names of the checkpoint and the time; raw weights of SRA need the averaged ones beside them.
    Every probe that applies takes a file of SiT; of the other kinds, which differ in their alignment, it is the probe that measures it."""
    layers = {"repa": mlp(channels=teacher_channels), "irepa": Layer(nn.Conv2d(WIDTH, teacher_channels, 3, padding=1))}
    outputs, heads, args = FORMATS[kind]
    raw, ema = pair(1, outputs, projectors(layers[kind]) if kind in layers else heads)
    file = write(tmp_path / "my-run" / "checkpoints" / "0000012.pt", raw, ema, **args)
    words = ("--data", cache, "--weights", weights, *SHORT, *(("--probe", "alignment") if kind != "sit" else ()))
    assert call(probe, "--ckpt", file, *words, "--model", MODEL, "--vae", "demo", "--out", tmp_path / "file") == 0
    said = capsys.readouterr()
    scale = "scaled channel by channel" if kind == "irepa" else "scaled by 0.18215, those of the cache are scaled by 0.9326"
    assert scale in said.err and f"read as {kind}" in said.out
    call(main, "--ckpt", file, "--model", MODEL, "--out", tmp_path / "converted")
    assert call(probe, "--ckpt", tmp_path / "converted", *words, "--out", tmp_path / "folder") == 0
    a, b = (table.read(tmp_path / name / "alignment.parquet") for name in ("file", "folder"))
    differ = ["run", "checkpoint", "checkpoint_sha", "created"]
    assert a.drop(columns=differ).equals(b.drop(columns=differ))
    targets = {"uniform_mid", "uniform_deep"} | ({kind} if kind != "sit" else set())
    assert set(a["target"]) == targets and set(a["step"]) == {12} and set(a["vae"]) == {"demo"}
    one = a.iloc[0]
    assert (one["run"], one["checkpoint"], one["checkpoint_sha"]) == ("my-run", "0000012.pt", foreign.read(file).sha)
    assert set(b["run"]) == {"converted"}
    assert kind != "sit" or "t_readability" in set(table.read(tmp_path / "folder" / "residual_stream.parquet")["metric"])


def test_what_a_probe_needs_beside_the_file_is_named(
    repa_file: Path, cache: Path, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, *words: str | Path) -> None:
        with pytest.raises(ValueError, match=match):
            call(probe, *words, *SHORT)

    folder, named = tmp_path / "converted", ("--model", MODEL, "--data", cache)
    call(main, "--ckpt", repa_file, "--model", MODEL, "--out", folder)
    refused("add --data CACHE and --model SiT-DEPTHxWIDTHxHEADS/PATCH", "--ckpt", repa_file)
    refused("does not say everything; add --data CACHE ", "--ckpt", repa_file, "--model", MODEL)
    refused("does not say everything; add --model", "--ckpt", repa_file, "--data", cache)
    refused("converted: does not say which data it was trained on; name a cache with --data CACHE", "--ckpt", folder)
    refused("alignment is to teacher features of shape .1, 20, 8, 8.; those of the cache have .1, 128", "--ckpt", repa_file, *named)
    refused("--weights 'both' does not exist", "--ckpt", repa_file, *named, "--weights", "both")

    _, ema = made("sit", tmp_path / "sit.pt")
    torch.save(ema.state_dict(), tmp_path / "flat.pt")
    refused("--weights raw: .*flat.pt holds ema weights alone", "--ckpt", tmp_path / "flat.pt", *named, "--weights", "raw")
    refused("flat.pt: lies in no run folder; say where to write with --out", "--ckpt", tmp_path / "flat.pt", *named)
    ema.y_embedder["embedding_table"] = nn.Embedding(8, WIDTH)
    torch.save(ema.state_dict(), tmp_path / "seven.pt")
    refused("the cache has 10 classes, the model 7", "--ckpt", tmp_path / "seven.pt", *named)

    from gsnr.train import vae

    other = vae.load("demo").model
    with torch.no_grad():
        other.encoder.conv_in.bias += 1
    other.save_pretrained(tmp_path / "vae")
    refused("not the VAE that made the latents .'demo'", "--ckpt", tmp_path / "flat.pt", *named, "--vae", str(tmp_path / "vae"))
    refused("not the VAE that made the latents", "--ckpt", smoke_run, "--vae", str(tmp_path / "vae"))


def test_sample_and_evaluate(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A converted folder is decoded by the VAE that is named, and evaluated on the data that are."""
    from gsnr.train import evaluate, sample

    for kind in ("sit", "irepa", "repa"):
        made(kind, tmp_path / f"{kind}.pt")
        call(main, "--ckpt", tmp_path / f"{kind}.pt", "--model", MODEL, "--out", tmp_path / kind)
    words = ("--per-class", 1, "--classes", 2, "--sampling-steps", 1, "--out", tmp_path / "grid.png")
    assert call(sample.main, "--ckpt", tmp_path / "sit", "--vae", "demo", *words) == 0
    assert (tmp_path / "grid.png").is_file()
    with pytest.raises(ValueError, match="does not say which VAE decodes its latents; name one with --vae"):
        call(sample.main, "--ckpt", tmp_path / "sit", *words)
    with pytest.raises(ValueError, match="normalised channel by channel"):
        call(sample.main, "--ckpt", tmp_path / "irepa", "--vae", "demo", *words)
    with pytest.raises(ValueError, match=r"f.pt: a file; .*gsnr convert --ckpt .*f.pt --out DIR"):
        (tmp_path / "f.pt").touch()
        checkpoint.load(tmp_path / "f.pt")
    capsys.readouterr()
    assert call(evaluate.main, "--ckpt", tmp_path / "sit", "--data", cache, "--n-images", 8) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["velocity_loss"] > 0 and "scaled by 0.18215" in said.err
    assert call(evaluate.main, "--ckpt", tmp_path / "repa", "--data", cache, "--n-images", 8) == 0, "its teacher's features are not needed"
    with pytest.raises(ValueError, match="name a cache with --data CACHE"):
        call(evaluate.main, "--ckpt", tmp_path / "sit")
