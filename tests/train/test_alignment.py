"""Router, mixture, projector and alignment loss, each against plain numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train import losses, plugins
from train.config import ModelConfig
from train.objective import make_alignment
from train.priors.mixture import mid_deep, mix
from train.projectors.conv3x3 import Projector
from train.routers.mlp import Router

GROUPS = {"G3": (4, 6, 2, 2), "G4": (4, 6, 2, 2)}
MODEL = ModelConfig(input_size=2, patch_size=1, hidden_size=8, depth=3, num_heads=2)


def features(seed: int = 0, b: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g: torch.randn(b, *shape, generator=generator).half() for g, shape in GROUPS.items()} | {"t": torch.rand(b, generator=generator)}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_router(state: dict[str, torch.Tensor], t: np.ndarray) -> dict[str, np.ndarray]:
    s = {k: v.double().numpy() for k, v in state.items()}
    h = t[:, None] @ s["embed.weight"].T + s["embed.bias"]
    for i in (0, 2, 4, 6):
        h = h @ s[f"mlp.{i}.weight"].T + s[f"mlp.{i}.bias"]
        if i < 6:
            h = h / (1 + np.exp(-h))
    return {"mid": softmax(h[:, :4]), "deep": softmax(h[:, 4:8]), "beta": softmax(h[:, 8:])}


def test_whole_loss_in_numpy_float64() -> None:
    torch.manual_seed(1)
    alignment = make_alignment({"name": "ahpa", "tap": 2}, MODEL, GROUPS)
    for p in alignment.parameters():
        torch.nn.init.normal_(p, std=0.5)
    batch, h = features(), torch.randn(3, 4, 8)
    got = alignment.loss(h, batch).detach().numpy()

    w = numpy_router(alignment.router.state_dict(), batch["t"].double().numpy())
    kernel, bias = (p.detach().double().numpy() for p in (alignment.projector.conv.weight, alignment.projector.conv.bias))
    for b in range(3):
        parts = []
        for j, (g, alpha) in enumerate((("G3", w["mid"]), ("G4", w["deep"]))):
            f = batch[g][b].double().numpy()
            parts.append(w["beta"][b, j] * sum(alpha[b, layer] * f[layer] for layer in range(4)))
        y = np.concatenate(parts, 0)  # mid first
        grid = h[b].double().numpy().reshape(2, 2, 8)
        padded = np.zeros((4, 4, 8))
        padded[1:3, 1:3] = grid
        cosines = []
        for r in range(2):
            for c in range(2):
                z = bias + np.einsum("oikl,kli->o", kernel, padded[r : r + 3, c : c + 3])
                cosines.append(z @ y[:, r, c] / (np.linalg.norm(z) * np.linalg.norm(y[:, r, c])))
        assert got[b] == pytest.approx(1 - np.mean(cosines), rel=1e-4, abs=1e-5)


def test_router_starts_uniform_and_sums_to_one() -> None:
    router = Router({"mid": 4, "deep": 4})
    weights = router(torch.linspace(0, 1, 7))
    torch.testing.assert_close(weights["mid"], torch.full((7, 4), 0.25))
    torch.testing.assert_close(weights["beta"], torch.full((7, 2), 0.5))
    for p in router.parameters():
        torch.nn.init.normal_(p)
    for w in router(torch.rand(5)).values():
        torch.testing.assert_close(w.sum(-1), torch.ones(5))


def test_ahpa_with_a_fresh_router_equals_uniform_both() -> None:
    batch, h = features(), torch.randn(3, 4, 8)
    torch.manual_seed(0)
    a = make_alignment({"name": "ahpa", "tap": 2}, MODEL, GROUPS)
    u = make_alignment({"name": "uniform", "source": "both", "tap": 2}, MODEL, GROUPS)
    u.projector.load_state_dict(a.projector.state_dict())
    assert torch.equal(a.target(batch, batch["t"]), u.target(batch, batch["t"]))
    assert torch.equal(a.loss(h, batch), u.loss(h, batch))


def test_gradient_reaches_the_router_and_not_the_features() -> None:
    batch = features()
    for g in GROUPS:
        batch[g] = batch[g].float().requires_grad_(True)
    alignment = make_alignment({"name": "ahpa", "tap": 2}, MODEL, GROUPS)
    h = torch.randn(3, 4, 8, requires_grad=True)
    alignment.loss(h, batch).sum().backward()
    assert alignment.router.mlp[-1].weight.grad.abs().sum() > 0
    assert h.grad is not None and h.grad.abs().sum() > 0
    assert all(batch[g].grad is None for g in GROUPS)


def test_target_is_float32_under_bf16_autocast() -> None:
    torch.manual_seed(0)
    alignment = make_alignment({"name": "ahpa", "tap": 2}, MODEL, GROUPS)
    torch.nn.init.normal_(alignment.router.mlp[-1].weight)
    batch, h = features(), torch.randn(3, 4, 8)
    plain = alignment.target(batch, batch["t"])
    with torch.autocast("cpu", torch.bfloat16):
        cast = alignment.target(batch, batch["t"])
        loss = alignment.loss(h, batch)
    assert cast.dtype == torch.float32 and loss.dtype == torch.float32
    assert torch.equal(plain, cast)


@pytest.mark.parametrize(("split", "mid"), [("2/6", 2), ("4/4", 4), ("6/2", 6)])
def test_regrouping(split: str, mid: int) -> None:
    batch = features()
    both = torch.cat([batch["G3"], batch["G4"]], 1)
    got = mid_deep(batch, split)
    assert torch.equal(got["mid"], both[:, :mid])
    assert torch.equal(got["deep"], both[:, mid:])


def test_mix_of_one_group_is_the_mean() -> None:
    batch = features()
    weights = {"deep": torch.full((3, 4), 0.25), "beta": torch.ones(3, 1)}
    y = mix({"deep": batch["G4"]}, weights)
    expected = batch["G4"].double().mean(1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)


def test_cosine_is_over_channels_and_in_float32() -> None:
    p, y = torch.randn(2, 5, 7).bfloat16(), torch.randn(2, 5, 7).bfloat16()
    got = losses.cosine(p, y)
    assert got.dtype == torch.float32
    a, b = p.double().numpy(), y.double().numpy()
    expected = 1 - ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean(1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_full_size_parameter_counts() -> None:
    """3x3 projector at XL 10.62 M; router about 0.17 M (DESIGN.md, section 10)."""
    with torch.device("meta"):
        projector = Projector(1152, 1024, 16)
    assert sum(p.numel() for p in projector.parameters()) == 1152 * 1024 * 9 + 1024
    assert round(sum(p.numel() for p in Router({"mid": 4, "deep": 4}).parameters()) / 1e6, 2) == 0.17


@pytest.mark.parametrize("name", plugins.names("alignments"))
def test_every_alignment_file_keeps_the_contract(name: str) -> None:
    if name == "none":
        assert make_alignment({"name": name}, MODEL, {}).tap is None
        return
    alignment = make_alignment({"name": name, "tap": 2}, MODEL, GROUPS)
    batch, h = features(), torch.randn(3, 4, 8)
    loss = alignment.loss(h, batch)
    assert loss.shape == (3,) and loss.dtype == torch.float32 and torch.isfinite(loss).all()
    assert alignment.projector(h).shape == alignment.target(batch, batch["t"]).shape
    other = {k: v.clone() for k, v in batch.items()}
    for key in other:
        other[key][2] = 0.5
    changed = alignment.loss(torch.cat([h[:2], h[2:] + 1]), other)
    torch.testing.assert_close(changed[:2], loss[:2])


def test_bad_names_and_shapes() -> None:
    with pytest.raises(ValueError, match="choose from ahpa, none, uniform"):
        make_alignment({"name": "nope"}, MODEL, GROUPS)
    with pytest.raises(ValueError, match="choose from fixed, mlp"):
        make_alignment({"name": "ahpa", "router": "nope"}, MODEL, GROUPS)
    with pytest.raises(ValueError, match="does not divide"):
        make_alignment({"name": "ahpa", "split": "3/4"}, MODEL, GROUPS)
    uneven = {"G3": (3, 6, 2, 2), "G4": (5, 8, 2, 2)}
    assert make_alignment({"name": "ahpa"}, MODEL, uneven).target(
        {g: torch.randn(1, *shape) for g, shape in uneven.items()}, torch.rand(1)
    ).shape == (1, 4, 14)
    with pytest.raises(ValueError, match="it has 3/5"):
        make_alignment({"name": "ahpa", "split": "4/4"}, MODEL, uneven)
    with pytest.raises(ValueError, match="choose from mid, deep, both"):
        make_alignment({"name": "uniform", "source": "nope"}, MODEL, GROUPS)
    with pytest.raises(ValueError, match="reads features of G3"):
        make_alignment({"name": "ahpa"}, MODEL, {})
    with pytest.raises(ValueError, match="2-token grid"):
        make_alignment({"name": "ahpa"}, ModelConfig(input_size=8, patch_size=1, hidden_size=8), GROUPS)
