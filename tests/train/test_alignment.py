"""Targets, routers, projectors and losses, each against plain numpy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gsnr.train import losses
from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import ModelConfig
from gsnr.train.contracts.problem import GROUPS, TrainSplit, batch_of, hidden, made, randomised
from gsnr.train.models.sit import SiT
from gsnr.train.priors.mixture import mid_deep, mix
from gsnr.train.projectors.conv3x3 import Projector
from gsnr.train.projectors.repa import Projector as RepaProjector
from gsnr.train.routers import RouterConfig
from gsnr.train.routers.mlp import Router
from tests.listing import choose_from
from tests.train.in_numpy import f64, mlp, numpy_cosine, softmax, tokens


def numpy_smooth_l1(z: np.ndarray, y: np.ndarray) -> float:
    d = np.abs(z - y)
    return np.where(d < 0.05, d**2 / 0.1, d - 0.025).mean()


def numpy_conv3x3(state: dict[str, torch.Tensor], h_TD: np.ndarray, side: int) -> np.ndarray:
    kernel, bias = f64(state["projector.conv.0.weight"]), f64(state["projector.conv.0.bias"])
    padded = np.zeros((side + 2, side + 2, h_TD.shape[1]))
    padded[1:-1, 1:-1] = h_TD.reshape(side, side, -1)
    return np.stack([bias + np.einsum("oikl,kli->o", kernel, padded[r : r + 3, c : c + 3]) for r in range(side) for c in range(side)])


def numpy_target(alignment: AlignmentModule, batch: dict[str, torch.Tensor], b: int, alpha: dict[str, np.ndarray], beta: np.ndarray, norm: str):
    """The routed target of sample b from its definition: layers in encoder order, mid the first four of G3 and G4."""
    parts = []
    for j, (name, weights) in enumerate(alpha.items()):
        f = f64(batch[{"mid": "G3", "deep": "G4"}.get(name, name)][b])
        if norm == "spatial":
            flat = f.reshape(*f.shape[:2], -1)
            f = (flat - 0.6 * flat.mean(-1, keepdims=True)) / (flat.std(-1, keepdims=True, ddof=1) + 1e-6)
            f = f.reshape(*f.shape[:2], 2, 2)
        parts.append(beta[j] * sum(w * layer for w, layer in zip(weights, f, strict=True)))
    return tokens(np.concatenate(parts, 0))


@pytest.mark.parametrize("features", ["none", "spatial"])
@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("loss", ["cosine", "l1", "smooth_l1"])
def test_ahpa_in_numpy(features: str, gate: str, loss: str) -> None:
    alignment = randomised(made("ahpa", features=features, beta=gate, loss=loss))
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    state = alignment.state_dict()
    t = f64(batch["t"])
    e = t[:, None] @ f64(state["router.embed.project.weight"]).T + f64(state["router.embed.project.bias"])
    logits = mlp(state, "router.mlp", e, 4)
    beta = softmax(logits[:, 8:]) if gate == "softmax" else 1 / (1 + np.exp(-logits[:, 8:]))
    for b in range(3):
        alpha = {"mid": softmax(logits[b, :4]), "deep": softmax(logits[b, 4:8])}
        y = numpy_target(alignment, batch, b, alpha, beta[b], features)
        z = numpy_conv3x3(state, f64(h[b]), 2)
        expected = {"cosine": numpy_cosine, "l1": lambda z, y: np.abs(z - y).mean(), "smooth_l1": numpy_smooth_l1}[loss](z, y)
        assert got[b] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("depth", [1, 3, 4, 8])
def test_mlp_router_of_any_depth_in_numpy(depth: int) -> None:
    """That many linear layers between the encoding of t and the weights, and no parameter besides."""
    alignment = randomised(made("ahpa", router_depth=depth))
    state = {name: x for name, x in alignment.state_dict().items() if name.startswith("router.")}
    assert len(state) == 2 + 2 * depth, "a weight and a bias of each layer and of the encoding"
    t = torch.tensor([0.0, 0.3, 1.0])
    e = f64(t)[:, None] @ f64(state["router.embed.project.weight"]).T + f64(state["router.embed.project.bias"])
    logits = mlp(state, "router.mlp", e, depth)
    for name, expected in zip(("mid", "deep", "beta"), np.split(logits, [4, 8], axis=1), strict=True):
        np.testing.assert_allclose(f64(alignment.router_weights(t)[name]), softmax(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("source", ["mid", "deep", "both", "G1", "G2", "G3", "G4", "G1-G4"])
def test_uniform_in_numpy(source: str) -> None:
    alignment = randomised(made("uniform", source=source))
    batch, h = batch_of(), hidden()
    order = {"both": ("G3", "G4"), "mid": ("G3",), "deep": ("G4",), "G1-G4": ("G1", "G2", "G3", "G4")}.get(source, (source,))
    assert set(alignment.needs) == set(order), "nothing is read that is not in the target"
    alpha = {name: np.full(GROUPS[name][0], 1 / GROUPS[name][0]) for name in order}
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        y = numpy_target(alignment, batch, b, alpha, np.full(len(order), 1 / len(order)), "none")
        assert got[b] == pytest.approx(numpy_cosine(numpy_conv3x3(alignment.state_dict(), f64(h[b]), 2), y), rel=1e-4, abs=1e-5)


def test_static_and_standardised_features_in_numpy() -> None:
    alignment = randomised(made("static", features="standardise"))
    alignment.calibrate(TrainSplit())
    batch, h, statistics = batch_of(), hidden(), TrainSplit().statistics()
    got = f64(alignment.loss({1: h}, batch))
    row = f64(alignment.state_dict()["router.row.weight"])[0]
    alpha, beta = {"G3": softmax(row[:4]), "G4": softmax(row[4:8])}, softmax(row[8:])
    for b in range(3):
        parts = []
        for j, group in enumerate(("G3", "G4")):
            mean, std = (statistics[f"{group}_{which}"].astype(float)[..., None, None] for which in ("mean", "std"))
            f = np.divide(f64(batch[group][b]) - mean, std, out=np.zeros(GROUPS[group]), where=np.broadcast_to(std > 0, GROUPS[group]))
            parts.append(beta[j] * np.einsum("l,lcij->cij", alpha[group], f))
        z = numpy_conv3x3(alignment.state_dict(), f64(h[b]), 2)
        assert got[b] == pytest.approx(numpy_cosine(z, tokens(np.concatenate(parts))), rel=1e-4, abs=1e-5)
    assert torch.equal(alignment.router_weights(torch.tensor([0.1]))["beta"], alignment.router_weights(torch.tensor([0.9]))["beta"])


def test_features_that_were_never_calibrated_do_not_pass_for_standardised() -> None:
    assert torch.isnan(made("ahpa", features="standardise").loss({1: hidden()}, batch_of())).all()


@pytest.mark.parametrize(("schedule", "share"), [("linear", lambda t: t), ("sigmoid", lambda t: 1 / (1 + np.exp(-10 * (t - 0.5))))])
def test_heuristic_in_numpy(schedule: str, share: Any) -> None:
    alignment = randomised(made("heuristic", schedule=schedule))
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        deep = share(float(batch["t"][b]))
        alpha = {"G3": np.full(4, 0.25), "G4": np.full(4, 0.25)}
        y = numpy_target(alignment, batch, b, alpha, np.array([1 - deep, deep]), "none")
        assert got[b] == pytest.approx(numpy_cosine(numpy_conv3x3(alignment.state_dict(), f64(h[b]), 2), y), rel=1e-4, abs=1e-5)


def test_repa_in_numpy() -> None:
    alignment = randomised(made("repa", projector_width=16))
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        z = mlp(alignment.state_dict(), "projector.mlp", f64(h[b]), 3)
        assert got[b] == pytest.approx(numpy_cosine(z, tokens(f64(batch["teacher"][b, 0]))), rel=1e-4, abs=1e-5)


def test_irepa_in_numpy() -> None:
    alignment = randomised(made("irepa"))
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        y = tokens(f64(batch["teacher"][b, 0]))
        y = (y - 0.6 * y.mean(0)) / (y.std(0, ddof=1) + 1e-6)
        assert got[b] == pytest.approx(numpy_cosine(numpy_conv3x3(alignment.state_dict(), f64(h[b]), 2), y), rel=1e-4, abs=1e-5)


def test_sra2_in_numpy() -> None:
    """The patchified latent: token (r, c) holds the 2x2 cells of every channel."""
    alignment = randomised(made("sra2"))
    batch, h = batch_of(), hidden()
    got = f64(alignment.loss({1: h}, batch))
    for b in range(3):
        x = f64(batch["latent"][b])
        y = np.stack([x[:, r : r + 2, c : c + 2].ravel() for r in (0, 2) for c in (0, 2)])
        assert got[b] == pytest.approx(numpy_smooth_l1(mlp(alignment.state_dict(), "projector.mlp", f64(h[b]), 5), y), rel=1e-4, abs=1e-5)


def test_sra_in_numpy() -> None:
    """The teacher is the moving average at clamp(t - 0.2 u, 0, 1) with the same noise and dropped labels; its block is found with a hook."""
    alignment = randomised(made("sra"))
    torch.manual_seed(0)
    ema = SiT(input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=5).eval()
    for p in ema.parameters():
        torch.nn.init.normal_(p, std=0.3)
    batch, h = batch_of(), hidden()
    batch["t"][0] = 0.01  # its teacher's time would be negative
    batch["label_drop"] = torch.tensor([False, True, False])
    with torch.no_grad():
        prepared = alignment.prepare(batch, ema)
    got = f64(alignment.loss({1: h}, prepared))
    seen = {}
    ema.blocks[1].register_forward_hook(lambda _m, _i, out: seen.update(h=out))
    for b in range(3):
        t = max(0.0, float(batch["t"][b]) - 0.2 * float(batch["offset_u"][b]))
        x = (1 - t) * batch["latent"][b : b + 1] + t * batch["noise"][b : b + 1]
        with torch.no_grad():
            ema(x, torch.tensor([t]), torch.tensor([5 if b == 1 else int(batch["label"][b])]))
        z = mlp(alignment.state_dict(), "projector.mlp", f64(h[b]), 2)
        assert got[b] == pytest.approx(numpy_smooth_l1(z, f64(seen["h"][0])), rel=1e-3, abs=1e-5)
    assert alignment.teacher_tap == 2, "two thirds of the depth, for a depth that SRA does not name"


def test_multi_is_the_weighted_sum_of_its_parts() -> None:
    parts = [{"name": "uniform", "source": "deep", "tap": 1, "weight": 0.5}, {"name": "sra2", "tap": 3}, {"name": "ahpa", "tap": 2}]
    alignment = randomised(made("multi", parts=tuple(parts)))
    batch, h = batch_of(), {k: hidden() + k for k in (1, 2, 3)}
    assert alignment.taps == (1, 3, 2) and set(alignment.needs) == {"G3", "G4"}
    expected = sum(part.weight * part.loss(h, batch) for part in alignment.parts)
    torch.testing.assert_close(alignment.loss(h, batch), expected)
    alone = made("uniform", source="deep", tap=1)
    alone.load_state_dict({k.removeprefix("each.0."): v for k, v in alignment.state_dict().items() if k.startswith("each.0.")})
    torch.testing.assert_close(alignment.parts[0].loss(h, batch), alone.loss(h, batch))
    assert set(alignment.router_weights(torch.rand(2))) == {"mid", "deep", "beta"}, "those of the part that learns some"


def test_ahpa_with_a_fresh_router_equals_uniform_both() -> None:
    batch, h = batch_of(), hidden()
    u = made("uniform", source="both")
    for router in ("mlp", "lookup", "attention", "content"):
        torch.manual_seed(0)
        a = made("ahpa", router=router)
        u.projector.load_state_dict(a.projector.state_dict())
        assert torch.equal(a.target(batch, h), u.target(batch, h))
        assert torch.equal(a.loss({1: h}, batch), u.loss({1: h}, batch))


def test_target_is_float32_under_bf16_autocast() -> None:
    alignment = randomised(made("ahpa"))
    batch, h = batch_of(), hidden()
    plain = alignment.target(batch, h)
    with torch.autocast("cpu", torch.bfloat16):
        cast = alignment.target(batch, h)
        loss = alignment.loss({1: h}, batch)
    assert cast.dtype == torch.float32 and loss.dtype == torch.float32
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("mid", [2, 4, 6])
def test_regrouping(mid: int) -> None:
    batch = batch_of()
    both = torch.cat([batch["G3"], batch["G4"]], 1)
    got = mid_deep(batch["G3"], batch["G4"], mid)
    assert torch.equal(got["mid"], both[:, :mid])
    assert torch.equal(got["deep"], both[:, mid:])
    h = hidden()
    uniform = made("uniform", source="mid", split=f"{mid}/{8 - mid}")
    target = uniform.target(batch, h)
    assert uniform.needs == ("G3", "G4")
    torch.testing.assert_close(target, both[:, :mid].float().mean(1).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_mix_of_one_group_is_the_mean() -> None:
    batch = batch_of()
    weights = {"deep": torch.full((3, 4), 0.25), "beta": torch.ones(3, 1)}
    y = mix({"deep": batch["G4"]}, weights)
    expected = batch["G4"].double().mean(1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(losses.LOSSES))
def test_losses_are_over_channels_and_in_float32(name: str) -> None:
    p, y = torch.randn(2, 5, 7).bfloat16(), torch.randn(2, 5, 7).bfloat16()
    got = losses.find(name)(p, y)
    assert got.dtype == torch.float32
    reference = {"cosine": numpy_cosine, "l1": lambda z, y: np.abs(z - y).mean(), "smooth_l1": numpy_smooth_l1}[name]
    np.testing.assert_allclose(got.numpy(), [reference(a, b) for a, b in zip(f64(p), f64(y), strict=True)], rtol=1e-5)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_full_size_parameter_counts() -> None:
    """3x3 projector at XL 10.62 M; router about 0.17 M; REPA's head at XL 8.1 M."""
    with torch.device("meta"):
        projector, head = Projector(1152, 1024, 16), RepaProjector(1152, 768, 16)
    assert count(projector) == 1152 * 1024 * 9 + 1024
    assert round(count(projector) / 1e6, 2) == 10.62
    assert round(count(head) / 1e6, 1) == 8.1
    assert round(count(Router(RouterConfig(sizes={"mid": 4, "deep": 4}))) / 1e6, 2) == 0.17


def test_bad_names_and_shapes() -> None:
    with pytest.raises(
        ValueError,
        match=choose_from(
            "ahpa, attention, disperse, dupa, gram, heuristic, irepa, layersync, multi, none, pooled, rare, repa, spare, sra, sra2, static, uniform"
        ),
    ):
        made("nope")
    with pytest.raises(ValueError, match=choose_from("attention, content, fixed, linear, lookup, mlp, sigmoid, static")):
        made("ahpa", router="nope")
    with pytest.raises(ValueError, match=choose_from("conv1x1, conv2, conv3, conv3x3, conv5, linear, mlp3, mlp5, repa, sra")):
        made("ahpa", projector="nope")
    with pytest.raises(ValueError, match=r"alignment.loss 'nope' does not exist; choose from cosine, l1, smooth_l1"):
        made("ahpa", loss="nope")
    with pytest.raises(ValueError, match=r"alignment.features 'nope' does not exist; choose from none, standardise, spatial, centre, rms"):
        made("ahpa", features="nope")
    with pytest.raises(ValueError, match=r"alignment.beta 'nope' does not exist; choose from softmax, sigmoid"):
        made("ahpa", beta="nope")
    with pytest.raises(ValueError, match=r"alignment.t_encoding 'nope' does not exist; choose from linear, sinusoidal, fourier"):
        made("ahpa", t_encoding="nope")
    with pytest.raises(ValueError, match=r"alignment.router-depth 0: must be at least 1"):
        made("ahpa", router_depth=0)
    with pytest.raises(ValueError, match=r"alignment.schedule 'mlp' does not exist; choose from linear, sigmoid"):
        made("heuristic", schedule="mlp")
    with pytest.raises(ValueError, match=r"alignment.projector-width -5: must be at least 1 and at most"):
        made("repa", projector_width=-5)
    for gamma in (float("nan"), -1.0, 1e30):
        with pytest.raises(ValueError, match=r"alignment.gamma .*: must be (between 0 and 1|a finite number)"):
            made("irepa", gamma=gamma)
    with pytest.raises(ValueError, match=r"alignment.teacher_tap 0: this model has blocks 1 to 3"):
        made("sra", teacher_tap=0)
    with pytest.raises(ValueError, match="does not divide"):
        made("ahpa", split="²/6")
    with pytest.raises(ValueError, match="goes from mid to deep"):
        made("heuristic", source="deep")
    with pytest.raises(ValueError, match="does not divide"):
        made("ahpa", split="3/4")
    with pytest.raises(ValueError, match="source 'G1' has neither"):
        made("uniform", source="G1", split="4/4")
    uneven = {"G3": (3, 6, 2, 2), "G4": (5, 8, 2, 2)}
    features = {g: torch.randn(1, *shape) for g, shape in uneven.items()} | {"t": torch.rand(1)}
    assert made("ahpa", groups=uneven).target(features, hidden(1)).shape == (1, 4, 14)
    with pytest.raises(ValueError, match="it has 3/5"):
        made("ahpa", groups=uneven, split="4/4")
    with pytest.raises(ValueError, match="choose from both, mid, deep"):
        made("uniform", source="nope")
    with pytest.raises(ValueError, match="reads features of G3"):
        made("ahpa", groups={})
    with pytest.raises(ValueError, match="reads features of teacher"):
        made("repa", groups={"G3": (4, 6, 2, 2)})
    with pytest.raises(ValueError, match="on a grid of 2x2 tokens, the model's tokens on 8x8"):
        made("ahpa", model=ModelConfig(input_size=8, patch_size=1, hidden_size=8))
