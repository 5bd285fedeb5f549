"""VAEs by kind and source, scaling that is measured, and a stranger's encoder without posterior, decoder and scaling from pictures to a probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image

from gsnr import plugins, table
from gsnr.train import vae
from gsnr.train.data import cache, statistics
from gsnr.train.data.latents import Scaling
from gsnr.train.prepare.command import main as prepare
from gsnr.train.priors import features
from gsnr.train.vaes import autoencoder_kl, autoencoder_tiny
from tests.conftest import REPO, call

STRANGER = REPO / "tests" / "strangers" / "taesana.py"
REAL = REPO.parent / "shared" / "data" / "taesana-encoder.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six crops of a photograph."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("china", "flower"):
        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (folder / name).mkdir()
        for i in range(6):
            photo.crop((60 * i, 30 * i, 60 * i + 130, 30 * i + 150)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(plugins.ENVIRONMENT, str(STRANGER))
    if not REAL.is_file():
        pytest.skip("the real encoder is not on this machine")
    return REAL


@pytest.fixture
def random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights in a file such as the real one."""
    monkeypatch.setenv(plugins.ENVIRONMENT, str(STRANGER))
    torch.manual_seed(0)
    save_file(plugins.find("vaes", "taesana").VAE.example().model.state_dict(), tmp_path / "random.safetensors")
    return tmp_path / "random.safetensors"


def by_hand(path: Path, x_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the sequence, by place, from the tensors of the file alone."""
    w = {name: tensor.float() for name, tensor in load_file(path).items()}
    outputs = {}
    h = (x_BCHW + 1) / 2
    for place in (0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17):
        if f"{place}.weight" in w:
            h = F.conv2d(h, w[f"{place}.weight"], w.get(f"{place}.bias"), stride=1 if place == 17 else 2, padding=1)
            h = h.relu() if place in (0, 2) else h
        else:
            trunk = h
            for i in (0, 2, 4):
                trunk = F.conv2d(trunk if i == 0 else trunk.relu(), w[f"{place}.conv.{i}.weight"], w[f"{place}.conv.{i}.bias"], padding=1)
            h = (trunk + h).relu()
        outputs[str(place)] = h
    return outputs


@pytest.mark.parametrize("weights", ["random", "real"])
def test_a_stranger_s_encoder_in_a_cache(weights: str, request: pytest.FixtureRequest, pictures: Path, tmp_path: Path) -> None:
    """Its latents and features are those of its file's tensors; std is 0, and the measured factor makes unit variance."""
    path = request.getfixturevalue(weights)
    frozen = vae.load(f"taesana:{path}")
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std, groups = features.encode(frozen, x, frozen.layers, 2)
    expected = by_hand(path, x)
    torch.testing.assert_close(mean, expected["17"], rtol=1e-4, atol=1e-5)
    assert not std.any()
    for layer, f in zip(frozen.layers, [f for group in groups.values() for f in group.unbind(1)], strict=True):
        torch.testing.assert_close(f, F.adaptive_avg_pool2d(expected[layer.name], 2), rtol=1e-4, atol=1e-5)
    prepare_with(path, pictures, tmp_path / "cache")
    header, splits = cache.open_cache(tmp_path / "cache", ("G3", "G4"))
    assert header.latent_shape == (32, 2, 2) and header.groups == {"G3": (3, 64, 2, 2), "G4": (3, 64, 2, 2)}
    rows = splits["train"].take(np.arange(8), ("mean", "std"))
    assert not rows["std"].any()
    assert np.isclose(header.scaling.final(rows["mean"].astype(np.float64)).std(), 1, rtol=1e-6)
    if weights == "real":
        assert 0.5 < header.scale < 2, "latents of about unit scale"


def prepare_with(weights: Path, pictures: Path, out: Path) -> None:
    data = ("--data", pictures, "--vae", f"taesana:{weights}", "--resolution", 64, "--patch", 1, "--heldout", 4)
    assert call(prepare, *data, "--out", out) == 0


def test_a_stranger_s_encoder_trains_and_is_probed(real: Path, pictures: Path, tmp_path: Path) -> None:
    """What needs a decoder says so, in one line."""
    from gsnr.probes.common.command import main as probe
    from gsnr.train import sample
    from gsnr.train.command import main as train

    prepare_with(real, pictures, tmp_path / "cache")
    small = ("--model.in-channels", 32, "--model.input-size", 2, "--model.num-classes", 2, "--data.path", tmp_path / "cache")
    common = ("--preset", "smoke", "--alignment", "ahpa", "--steps", 2, *small, "--out", tmp_path / "run")
    with pytest.raises(ValueError, match=r"--sample-every 2: VAE 'taesana:.*' has no decoder"):
        call(train, *common, "--sample-every", 2)
    assert call(train, *common) == 0
    words = ("--ckpt", tmp_path / "run", "--probe", "alignment,vae_pca", "--bins", 1, "--n-images", 4, "--fit-steps", 2, "--controls", "none")
    assert call(probe, *words, "--targets", "own") == 0
    assert set(table.read(tmp_path / "run" / "probes" / "alignment.parquet")["vae"]) == {f"taesana:{real}"}
    assert set(table.read(tmp_path / "run" / "probes" / "vae_pca.maps.parquet")["group"]) == {"G3", "G4"}, "no decoded image"
    with pytest.raises(ValueError, match=r"gsnr sample: VAE 'taesana:.*' has no decoder; its latents cannot be made pictures"):
        call(sample.main, "--ckpt", tmp_path / "run")


def test_kinds_are_found_by_class_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made = autoencoder_tiny.VAE.example()
    made.model.save_pretrained(tmp_path / "tiny")
    one, two = vae.load(str(tmp_path / "tiny")), vae.load(f"autoencoder_tiny:{tmp_path / 'tiny'}")
    assert isinstance(one, autoencoder_tiny.VAE) and one.sha == two.sha == made.sha
    assert one.scaling == Scaling(factor=1.0) and one.decodes
    with pytest.raises(ValueError, match=r"kind 'taesana' does not exist; choose from autoencoder_kl, .*--plugins"):
        vae.load("taesana:nothing")
    monkeypatch.setenv(plugins.ENVIRONMENT, str(STRANGER))
    for name, said in (
        ("taesana:nothing", "No such file"),
        ("taesana", "No such file|name"),
        (f"autoencoder_kl:{tmp_path / 'tiny'}", ""),
    ):
        with pytest.raises(ValueError, match=f"VAE '{name}' cannot be loaded .*KIND:SOURCE.: .*{said}") as error:
            vae.load(name)
        assert "\n" not in str(error.value)


def test_tiny_layers_are_the_outputs_of_its_blocks() -> None:
    """Against running its sequence by hand; a stage is half the side of the one before."""
    frozen = autoencoder_tiny.VAE(AutoencoderTiny(num_encoder_blocks=(1, 2, 3), num_decoder_blocks=(1, 1, 1), **_tiny_widths(3)))
    assert [(x.name, x.group) for x in frozen.layers] == [
        (f"layers.{i}", g) for i, g in ((1, "G2"), (3, "G3"), (4, "G3"), (6, "G4"), (7, "G4"), (8, "G4"))
    ]
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    h, outputs = (x + 1) / 2, {}
    for i, module in enumerate(frozen.model.encoder.layers):
        h = outputs[f"layers.{i}"] = module(h)
    mean, _, groups = features.encode(frozen, x, frozen.layers, 4)
    torch.testing.assert_close(mean, h)
    for group, sides in (("G2", 16), ("G3", 8), ("G4", 4)):
        members = [outputs[layer.name] for layer in frozen.layers if layer.group == group]
        assert {f.shape[-1] for f in members} == {sides}
        torch.testing.assert_close(groups[group], torch.stack([F.adaptive_avg_pool2d(f, 4) for f in members], 1))


def _tiny_widths(stages: int) -> dict[str, tuple[int, ...]]:
    return {"encoder_block_out_channels": (4,) * stages, "decoder_block_out_channels": (4,) * stages}


@pytest.mark.parametrize(("factor", "shift"), [(0.5, None), (0.5, 0.25), (None, None)])
def test_factor_and_shift_of_diffusers(factor: float | None, shift: float | None) -> None:
    """final = factor (raw - shift), as pipelines of SD 3 and Flux take it."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, scaling_factor=factor, shift_factor=shift, **blocks)
    scaling = autoencoder_kl.VAE(model).scaling
    if factor is None:
        assert scaling is None
        return
    raw = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(scaling.final(raw), (raw - (shift or 0)) * factor)


def test_scaling_from_sums_is_that_of_draws() -> None:
    """Against 4000 draws of the posterior, and with no posterior against numpy."""
    g = torch.Generator().manual_seed(0)
    offset = torch.tensor([3.0, -1.0, 0.0]).view(3, 1, 1)
    mean, std = torch.randn(20, 3, 4, 4, generator=g) * 2 + offset, torch.rand(20, 3, 4, 4, generator=g)
    sums = statistics.latent_sums(mean[:7], std[:7]) + statistics.latent_sums(mean[7:], std[7:])
    draws = mean.double() + std.double() * torch.randn(4000, 20, 3, 4, 4, generator=g, dtype=torch.float64)
    scalar, channel = (statistics.scaling_of(sums, measure) for measure in statistics.MEASURES)
    assert np.isclose(1 / scalar.factor, draws.std(), rtol=1e-3) and not scalar.channel_scale
    final = channel.final(draws.flatten(0, 1))
    torch.testing.assert_close(final.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=2e-3)
    torch.testing.assert_close(final.std((0, 2, 3)), torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)
    alone = statistics.scaling_of(statistics.latent_sums(mean, torch.zeros_like(std)), "channel")
    np.testing.assert_allclose(alone.channel_scale, 1 / mean.double().numpy().std((0, 2, 3)), rtol=1e-9)
    mean[:, 1] = 5.0
    with pytest.raises(ValueError, match="--latent-scale channel: channel 1 of the latents does not vary over the train split"):
        statistics.scaling_of(statistics.latent_sums(mean, torch.zeros_like(std)), "channel")


def test_prepare_measures_on_the_train_split(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder_kl.VAE.example().model.save_pretrained(tmp_path / "vae")
    common = ("--data", pictures, "--vae", tmp_path / "vae", "--resolution", 32, "--features", "none", "--heldout", 4, "--shard", 3, "--flip")
    assert call(prepare, *common, "--latent-scale", "channel", "--out", tmp_path / "channel") == 0
    header, splits = cache.open_cache(tmp_path / "channel", ())
    views = [splits["train"].take(np.arange(8), ("mean", "std"), view) for view in (0, 1)]
    mean, std = (np.concatenate([rows[name] for rows in views]).astype(np.float64) for name in ("mean", "std"))
    np.testing.assert_allclose(header.channel_bias, mean.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(header.channel_scale, 1 / np.sqrt(mean.var((0, 2, 3)) + (std**2).mean((0, 2, 3))), rtol=1e-6)
    assert header.scale == 1 and "alpha over white" in header.preprocessing
    assert call(prepare, *common, "--latent-scale", tmp_path / "channel", "--out", tmp_path / "same") == 0
    assert cache.read_header(tmp_path / "same").scaling == header.scaling
    assert call(prepare, *common, "--out", tmp_path / "own") == 0
    assert cache.read_header(tmp_path / "own").scaling == Scaling(factor=0.18215)
    for asked, said in (
        ("nothing", "--latent-scale 'nothing': choose from vae, scalar, channel, or name a cache"),
        ("channel", "was prepared with other options: --latent-scale was .0.18215, .*, now 'channel'"),
    ):
        with pytest.raises(ValueError, match=said):
            call(prepare, *common, "--latent-scale", asked, "--out", tmp_path / "own")
    other = ("--data", pictures, "--vae", "demo", "--resolution", 64, "--patch", 1, "--heldout", 4, "--out", tmp_path / "other")
    with pytest.raises(ValueError, match=r"its latents are of VAE .*, not of --vae demo"):
        call(prepare, *other, "--latent-scale", tmp_path / "own")
