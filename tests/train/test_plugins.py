"""The contract of every alignment, router, projector and VAE, found by file name: a new file is checked without an edit here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ConsistencyDecoderVAE
from torch import nn

import gsnr
from gsnr import plugins
from gsnr.train import vae
from gsnr.train.alignments import AlignmentModule
from gsnr.train.models.sit import SiT
from gsnr.train.objective import Objective
from gsnr.train.priors.features import encode
from gsnr.train.priors.layers import layers
from gsnr.train.routers import RouterConfig
from tests.train.alignment_problems import GROUPS, MODEL, TrainSplit, batch_of, hidden, made, randomised

ALIGNMENTS = plugins.names("alignments")
PARTS = ({"name": "uniform", "source": "deep", "tap": 1}, {"name": "sra2", "tap": 2})
ROUTERS = plugins.names("routers")
SIZES = {"mid": 4, "deep": 4}


def sit(seed: int = 0) -> SiT:
    torch.manual_seed(seed)
    model = SiT(input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=5)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def default(name: str, **options: object) -> AlignmentModule:
    """An alignment with its defaults, weights away from their initial zeros, statistics taken."""
    alignment = made(name, **({"parts": PARTS} if name == "multi" else {}) | options)
    randomised(alignment)
    alignment.calibrate(TrainSplit())  # type: ignore[arg-type]
    return alignment


def prepared(alignment: AlignmentModule, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return alignment.prepare(batch, sit(5))


@pytest.mark.parametrize("name", [name for name in ALIGNMENTS if name != "none"])
def test_alignment(name: str) -> None:
    """Shapes, finiteness, float32; determinism; one sample's loss is its own; gradients reach h and every trainable parameter, never a prior."""
    alignment = default(name)
    h = {k: hidden() for k in alignment.taps}
    batch = prepared(alignment, batch_of())
    loss = alignment.loss(h, batch)
    assert loss.shape == (3,) and loss.dtype == torch.float32 and torch.isfinite(loss).all()
    assert torch.equal(loss, alignment.loss(h, batch))
    assert all(1 <= tap <= MODEL.depth for tap in alignment.taps) and set(alignment.needs) <= GROUPS.keys()
    for part in alignment.parts:
        assert part.projector(hidden()).shape == part.target(batch, hidden()).shape

    other = prepared(alignment, {key: torch.cat([x[:2], batch_of(seed=1)[key][2:]]) for key, x in batch_of().items()})
    changed = alignment.loss({k: torch.cat([x[:2], x[2:] + 1]) for k, x in h.items()}, other)
    torch.testing.assert_close(changed[:2], loss[:2])
    assert not torch.allclose(changed[2], loss[2])

    leaves = {key: x.float().requires_grad_(True) if x.is_floating_point() else x for key, x in batch.items() if key not in ("t", "offset_u")}
    inputs = {k: x.clone().requires_grad_(True) for k, x in h.items()}
    alignment.loss(inputs, batch | leaves).sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in inputs.values())
    priors = [*alignment.needs, *(key for key in leaves if key.startswith("ema_"))]
    assert all(leaves[key].grad is None for key in priors), "no gradient flows into VAE or teacher"
    for parameter_name, p in alignment.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_alignment_learns_and_survives_saving(name: str) -> None:
    """Twenty steps of AdamW lower the loss; a copy that loads its state gives the same loss."""
    torch.manual_seed(0)
    alignment = default(name)
    if not alignment.parts:
        assert alignment.taps == () and alignment.needs == () and not list(alignment.parameters())
        return
    h, batch = {k: hidden() for k in alignment.taps}, prepared(alignment, batch_of())
    optimizer = torch.optim.AdamW(alignment.parameters(), lr=1e-2)
    first = alignment.loss(h, batch).mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = alignment.loss(h, batch).mean()
        loss.backward()
        optimizer.step()
    assert alignment.loss(h, batch).mean().item() < first
    again = made(name, **{"parts": PARTS} if name == "multi" else {})
    again.load_state_dict(alignment.state_dict())
    assert torch.equal(again.loss(h, batch), alignment.loss(h, batch))


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ALIGNMENTS if name != "none"]
    + [("ahpa", {"router": router}) for router in ROUTERS]
    + [("ahpa", {"projector": projector}) for projector in plugins.names("projectors")]
    + [("ahpa", {"features": "spatial", "t_encoding": "sinusoidal"}), ("ahpa", {"features": "standardise", "t_encoding": "fourier"})]
    + [("uniform", {"source": "G1-G4", "loss": "smooth_l1"}), ("uniform", {"source": "mid", "split": "2/6", "beta": "sigmoid"})],
    ids=lambda x: x if isinstance(x, str) else ",".join(x.values()) or "default",
)
def test_alignment_under_the_engines(name: str, options: dict[str, str]) -> None:
    """ghost and vmap give each parameter the ||g_i||^2 of the loop, for the whole objective, router and projector included."""
    alignment = default(name, **options)
    objective = Objective(sit(), alignment).eval()
    batch = prepared(alignment, batch_of(4)) | {"label_drop": torch.tensor([False, True, False, False])}
    found = {}
    for engine in ("loop", "vmap", "ghost"):
        result = gsnr.measure(objective, lambda m, b: m(b)["align"], [batch], engine=engine, interval=False, groups=lambda name: name)
        found[engine] = {group: result[group].q_n for group in result.groups}
    for engine in ("vmap", "ghost"):
        for group, q_n in found["loop"].items():
            np.testing.assert_allclose(found[engine][group], q_n, rtol=1e-3, atol=1e-6 * found["loop"]["all"].max(), err_msg=f"{engine} {group}")


def _away_from_zero(module: nn.Module) -> None:
    """Parameters that start at zero become normal; the others keep their usual scale, at which no softmax saturates."""
    for p in module.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.3)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("beta", ["softmax", "sigmoid"])
def test_router(name: str, beta: str) -> None:
    """Shapes, sums, the uniform start, per-sample independence, float32; gradients to all its parameters."""
    torch.manual_seed(0)
    router = plugins.find("routers", name).Router(RouterConfig(sizes=SIZES, beta=beta, hidden_size=8))
    t, h = torch.tensor([0.0, 0.05, 0.42, 0.999, 1.0]), hidden(5)
    start = router(t, h)
    assert {key: tuple(x.shape) for key, x in start.items()} == {"mid": (5, 4), "deep": (5, 4), "beta": (5, 2)}
    torch.testing.assert_close(start["mid"], torch.full((5, 4), 0.25))
    if name not in ("linear", "sigmoid"):
        torch.testing.assert_close(start["beta"], torch.full((5, 2), 0.5))
    _away_from_zero(router)
    weights = router(t, h)
    for key, w in weights.items():
        assert w.dtype == torch.float32 and (w >= 0).all()
        if key != "beta" or beta == "softmax" or name in ("linear", "sigmoid"):
            torch.testing.assert_close(w.sum(-1), torch.ones(5))
        torch.testing.assert_close(router(t[1:2], h[1:2])[key], w[1:2])
    if not router.reads_content:
        assert torch.equal(router(t, None)["mid"], weights["mid"])
    if list(router.parameters()):
        sum((w * torch.randn_like(w)).sum() for w in weights.values()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in router.parameters())


def test_lookup_is_piecewise_constant_in_ten_pieces_and_mlp_is_continuous() -> None:
    torch.manual_seed(0)
    t = torch.linspace(0, 1, 10_001)
    pieces = {}
    for name in ("lookup", "mlp", "attention"):
        router = plugins.find("routers", name).Router(RouterConfig(sizes=SIZES))
        _away_from_zero(router)
        with torch.no_grad():
            steps = router(t)["beta"][:, 0].diff().abs()
        pieces[name] = (int((steps > 0).sum()) + 1, float(steps.max()))
    assert pieces["lookup"][0] == 10
    for name in ("mlp", "attention"):
        assert pieces[name][0] > 5000 and pieces[name][1] < 1e-2, "no jump between times 1e-4 apart"


@pytest.mark.parametrize("name", plugins.names("projectors"))
def test_projector(name: str) -> None:
    """Shapes on another grid than the tests' other one; samples do not mix; gradients to all parameters; token order row by row."""
    torch.manual_seed(0)
    projector = plugins.find("projectors", name).Projector(64, 10, 3)
    h = torch.randn(2, 9, 64)
    z = projector(h)
    assert z.shape == (2, 9, 10) and torch.isfinite(z).all()
    torch.testing.assert_close(projector(h[1:]), z[1:])
    z.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())
    moved = h.clone()
    moved[0, 8] += 1  # the last token, bottom right: with 3x3 kernels the first token of a 3x3 grid sees it after two convolutions, not one
    reaches_first = not torch.equal(projector(moved)[0, 0], z[0, 0])
    convolutions = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in projector.modules())
    assert reaches_first == (convolutions >= 2), "GroupNorm or two 3x3 convolutions carry it, nothing else"


def test_projectors_have_the_layers_of_the_paper() -> None:
    """Table D.13: numbers of linear layers and 3x3 convolutions, and what stands between."""

    def layers_of(name: str) -> list[str]:
        return [type(m).__name__ for m in plugins.find("projectors", name).Projector(64, 10, 3).modules() if not list(m.children())]

    assert layers_of("linear") == ["Linear"]
    assert layers_of("mlp3") == ["Linear", "SiLU"] * 2 + ["Linear"]
    assert layers_of("mlp5") == ["Linear", "SiLU"] * 4 + ["Linear"]
    assert layers_of("conv3x3") == ["Conv2d"]
    for n in (2, 3, 5):
        assert layers_of(f"conv{n}") == ["Conv2d", "GroupNorm", "SiLU"] * (n - 1) + ["Conv2d"]


BLOCKS = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(8, 16, 32, 32),
    layers_per_block=2,
    norm_num_groups=4,
)


def _save(kind: str, folder: Path) -> None:
    torch.manual_seed(0)
    if kind == "consistency":
        decoder = {"decoder_block_out_channels": (32, 32, 32, 32), "decoder_layers_per_block": 1, "decoder_norm_num_groups": 8}
        ConsistencyDecoderVAE(encoder_block_out_channels=(8, 16, 32, 32), encoder_norm_num_groups=4, **decoder).save_pretrained(folder)
    else:
        AutoencoderKL(**BLOCKS, latent_channels=4, scaling_factor=0.13025 if kind == "sdxl" else 0.18215).save_pretrained(folder)


@pytest.mark.parametrize("resolution", [64, 128])
@pytest.mark.parametrize(("kind", "scale"), [("sd", 0.18215), ("sdxl", 0.13025), ("consistency", 0.18215)])
def test_vae(kind: str, scale: float, resolution: int, tmp_path: Path) -> None:
    """SD, SDXL and the Consistency decoder's VAE, in the hub's format: scaling factor, 15 layers in groups 4/4, frozen, deterministic."""
    _save(kind, tmp_path / kind)
    frozen = vae.load(str(tmp_path / kind))
    assert frozen.scale == scale and frozen.downsampling == 8 and not frozen.model.training
    walked = layers(frozen.model.encoder)
    assert [layer.group for layer in walked] == ["G1"] * 4 + ["G2"] * 3 + ["G3"] * 4 + ["G4"] * 4
    images = torch.rand(2, 3, resolution, resolution) * 2 - 1
    grid = resolution // 16
    mean, std, features = encode(frozen.model, images, walked, grid)
    assert mean.shape == std.shape == (2, 4, resolution // 8, resolution // 8)
    assert {group: tuple(f.shape) for group, f in features.items()} == {
        "G1": (2, 4, 8, grid, grid),
        "G2": (2, 3, 16, grid, grid),
        "G3": (2, 4, 32, grid, grid),
        "G4": (2, 4, 32, grid, grid),
    }
    assert not any(p.requires_grad for p in frozen.model.parameters())
    for group, f in encode(frozen.model, images[1:], walked, grid)[2].items():
        torch.testing.assert_close(f, features[group][1:], rtol=1e-4, atol=1e-4)


def test_a_vae_of_another_kind_is_refused(tmp_path: Path) -> None:
    sit().save_pretrained(tmp_path / "sit")
    with pytest.raises(ValueError, match="it is a SiT, not one of AutoencoderKL, ConsistencyDecoderVAE"):
        vae.load(str(tmp_path / "sit"))
