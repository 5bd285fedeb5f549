"""The contract of every alignment, router, projector and VAE, found by file name: a new file is checked without an edit here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ConsistencyDecoderVAE
from torch import nn

from gsnr import plugins
from gsnr.train import vae
from gsnr.train.contracts import alignments, projectors, routers, vaes
from gsnr.train.contracts.problem import sit, started
from gsnr.train.contracts.routers import SIZES
from gsnr.train.data.latents import Scaling
from gsnr.train.priors.features import encode
from gsnr.train.routers import RouterConfig

ROUTERS = plugins.names("routers")


@pytest.mark.parametrize("name", plugins.names("alignments"))
def test_alignment(name: str) -> None:
    assert alignments.check(name)


@pytest.mark.parametrize("name", ROUTERS)
def test_router(name: str) -> None:
    assert routers.check(name)


@pytest.mark.parametrize("name", plugins.names("projectors"))
def test_projector_contract(name: str) -> None:
    assert projectors.check(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ahpa", {"router": router} | ({"table_edges": "0,1", "table_weights": ".3,.7"} if router == "table" else {})) for router in ROUTERS]
    + [("ahpa", {"projector": projector}) for projector in plugins.names("projectors")]
    + [("ahpa", {"features": "spatial", "t_encoding": "sinusoidal"}), ("ahpa", {"features": "standardise", "t_encoding": "fourier"})]
    + [("ahpa", {"per_group": "true", "entropy": "0.2", "temperature": "2", "features": "rms"})]
    + [("uniform", {"source": "G1-G4", "loss": "smooth_l1"}), ("uniform", {"source": "mid", "split": "2/6", "beta": "sigmoid"})],
    ids=lambda x: x if isinstance(x, str) else ",".join(x.values()),
)
def test_alignment_under_the_engines(name: str, options: dict[str, str]) -> None:
    """ghost and vmap give each parameter the ||g_i||^2 of the loop, for the whole objective, router and projector included."""
    found = {engine: alignments.per_sample_norms(started(name, **options), engine) for engine in ("loop", "vmap", "ghost")}
    for engine in ("vmap", "ghost"):
        for group, q_n in found["loop"].items():
            np.testing.assert_allclose(found[engine][group], q_n, rtol=1e-3, atol=1e-6 * found["loop"]["all"].max(), err_msg=f"{engine} {group}")


@pytest.mark.parametrize("name", ["linear", "sigmoid"])
def test_schedules_sum_to_one_however_beta_is_made(name: str) -> None:
    router = plugins.find("routers", name).Router(RouterConfig(sizes=SIZES, beta="sigmoid"))
    torch.testing.assert_close(router(torch.linspace(0, 1, 5))["beta"].sum(-1), torch.ones(5))


def test_lookup_is_piecewise_constant_in_ten_pieces_and_mlp_is_continuous() -> None:
    torch.manual_seed(0)
    t = torch.linspace(0, 1, 10_001)
    pieces = {}
    for name in ("lookup", "mlp", "attention"):
        router = plugins.find("routers", name).Router(RouterConfig(sizes=SIZES))
        routers.away_from_zero(router)
        with torch.no_grad():
            steps = router(t)["beta"][:, 0].diff().abs()
        pieces[name] = (int((steps > 0).sum()) + 1, float(steps.max()))
    assert pieces["lookup"][0] == 10
    for name in ("mlp", "attention"):
        assert pieces[name][0] > 5000 and pieces[name][1] < 1e-2, "no jump between times 1e-4 apart"


@pytest.mark.parametrize("name", ["linear", "mlp3", "mlp5", "repa", "sra", "conv1x1", "conv3x3", "conv2", "conv3", "conv5"])
def test_tokens_of_a_projector_lie_row_by_row(name: str) -> None:
    """The last token, bottom right, reaches the first of a 3x3 grid by GroupNorm or two 3x3 convolutions, and by nothing else."""
    torch.manual_seed(0)
    projector = plugins.find("projectors", name).Projector(64, 10, 3)
    h = torch.randn(2, 9, 64)
    moved = h.clone()
    moved[0, 8] += 1
    convolutions = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in projector.modules())
    assert torch.equal(projector(moved)[0, 0], projector(h)[0, 0]) == (convolutions < 2)


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


@pytest.mark.parametrize("name", plugins.names("vaes"))
def test_vae_contract(name: str) -> None:
    assert vaes.check(name)


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
    assert frozen.scaling == Scaling(factor=scale) and frozen.downsampling == 8 and not frozen.model.training
    walked = frozen.layers
    assert [layer.group for layer in walked] == ["G1"] * 4 + ["G2"] * 3 + ["G3"] * 4 + ["G4"] * 4
    images = torch.rand(2, 3, resolution, resolution) * 2 - 1
    grid = resolution // 16
    mean, std, features = encode(frozen, images, walked, grid)
    assert mean.shape == std.shape == (2, 4, resolution // 8, resolution // 8)
    assert {group: tuple(f.shape) for group, f in features.items()} == {
        "G1": (2, 4, 8, grid, grid),
        "G2": (2, 3, 16, grid, grid),
        "G3": (2, 4, 32, grid, grid),
        "G4": (2, 4, 32, grid, grid),
    }
    assert not any(p.requires_grad for p in frozen.model.parameters())
    for group, f in encode(frozen, images[1:], walked, grid)[2].items():
        torch.testing.assert_close(f, features[group][1:], rtol=1e-4, atol=1e-4)


def test_a_vae_of_another_kind_is_refused(tmp_path: Path) -> None:
    sit().save_pretrained(tmp_path / "sit")
    with pytest.raises(ValueError, match="it is a SiT, not one of AutoencoderKL, AutoencoderTiny, ConsistencyDecoderVAE"):
        vae.load(str(tmp_path / "sit"))
