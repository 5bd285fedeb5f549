"""512 pixels, at small size: twice the demo's token grid, features pooled and computed on line, other grids refused, a new start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gsnr import plugins
from gsnr.train import opening, presets, trainer
from gsnr.train import teacher as teachers
from gsnr.train.config import TrainConfig, resolve
from gsnr.train.convert.command import main as convert
from gsnr.train.costing.counts import macs
from gsnr.train.data import cache
from gsnr.train.data.batches import StepBatches
from gsnr.train.models.layers import sincos_2d
from gsnr.train.prepare.command import main as prepare
from gsnr.train.prepare.images import centre_crop
from gsnr.train.runs import checkpoint
from gsnr.train.trainer import make_objective
from tests.conftest import call
from tests.train import foreign_files
from tests.train.dino_files import save_dino
from tests.train.foreign_files import MODEL as FOREIGN

SIDE, GRID = 128, 16  # pixels and tokens of an image: twice the demo's
MODEL = {"input_size": GRID, "patch_size": 1, "hidden_size": 16, "depth": 4, "num_heads": 2, "num_classes": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (SIDE + i, SIDE + 3, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def caches(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """How features are kept -> a cache of all groups, two views, the demo's VAE and teacher."""
    folder = tmp_path_factory.mktemp("caches")
    for name, features in {"layers": "G1,G2,G3,G4", "pooled": "pooled:G3,G4", "online": "online:G1,G2,G3,G4"}.items():
        words = ("--data", pictures, "--vae", "demo", "--teacher", "demo", "--resolution", SIDE, "--patch", 1, "--heldout", 2)
        flip = () if name == "pooled" else ("--flip",)
        assert call(prepare, *words, *flip, "--features", features, "--out", folder / name, "--workers", 0) == 0
    return {path.name: path for path in folder.iterdir()}


def config_of(path: Path, alignment: str = "ahpa", **changes: object) -> TrainConfig:
    base = presets.at(alignment, presets.DEMO) if alignment in presets.ROWS else {"alignment": {"name": alignment}}
    small = {"data": {"path": str(path), "workers": 0}, "model": MODEL, "batch": 4, "steps": 1, "precision": "no", "trackers": "none"}
    return resolve(base, small, changes)


def test_every_alignment_trains_a_step_at_twice_the_grid(caches: dict[str, Path]) -> None:
    for name in plugins.names("alignments"):
        parts = {"parts": presets.ROWS["multi"].alignment["parts"]} if name == "multi" else {}
        config = config_of(caches["layers"], alignment=name) if not parts else config_of(caches["layers"], "multi")
        if name in ("attention", "pooled", "repi"):  # of a teacher with attention, of vectors
            continue
        header, splits = opening.open_data(config)
        objective = make_objective(config, header)
        objective.alignment.calibrate(splits["train"])
        needs, views = objective.alignment.needs, objective.alignment.views
        batch = StepBatches(split=splits["train"], groups=needs, batch=4, seed=0, label_dropout=0.0, views=views)[0]
        losses = objective(objective.alignment.prepare(batch, objective.model))
        sum(loss.mean() for loss in losses.values()).backward()
        grads = [p.grad for p in objective.parameters() if p.grad is not None]
        assert grads and all(g.isfinite().all() for g in grads), name
        assert objective.model.grid**2 == 256 and ("align" in losses) == (name != "none")


def test_pooled_features_are_the_uniform_target(caches: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    """The mean over a group's layers; so `uniform` has the same target, to the rounding of float16 (2^-11 of the value)."""
    whole, pooled = (opening.open_prepared(caches[name], ()) for name in ("layers", "pooled"))
    assert pooled[0].groups["G3"] == (1, *whole[0].groups["G3"][1:]) and pooled[0].layers["G3"][0].endswith("mean of G3")
    one, two = (splits["train"].take(np.arange(4), ("G3", "G4", "mean")) for _, splits in (whole, pooled))
    np.testing.assert_array_equal(one["mean"], two["mean"])
    for group in ("G3", "G4"):
        np.testing.assert_allclose(two[group][:, 0], one[group].astype(np.float64).mean(1), rtol=2e-3, atol=2e-3)
    targets = []
    for name in ("layers", "pooled"):
        config = config_of(caches[name], "uniform-both")
        header, splits = opening.open_data(config)
        alignment = make_objective(config, header).alignment
        batch = {name: torch.from_numpy(x) for name, x in splits["train"].take(np.arange(4), alignment.needs).items()} | {"t": torch.rand(4)}
        targets.append(alignment.target(batch, torch.zeros(4, GRID**2, 16)))
    torch.testing.assert_close(*targets, rtol=2e-3, atol=2e-3)


def test_online_features_are_those_that_would_have_been_stored(caches: dict[str, Path]) -> None:
    """Of both views, in any batch; the last bit of float16 may differ, for convolutions round by the shape of their batch."""
    (header, stored), (now, online) = (opening.open_prepared(caches[name], ()) for name in ("layers", "online"))
    assert now.dtype == "online" and now.groups == header.groups and set(now.stored) == {"teacher"}
    index = np.array([3, 0, 2])
    for view in (0, 1, np.array([1, 0, 1])):
        columns = ("mean", "label", "teacher", "G1", "G4")
        one, two = (splits["train"].take(index, columns, view) for splits in (stored, online))
        assert set(two) == set(columns)
        for name in ("mean", "label", "teacher"):
            np.testing.assert_array_equal(one[name], two[name])
        for name in ("G1", "G4"):
            assert two[name].dtype == np.float16
            np.testing.assert_allclose(one[name].astype(np.float32), two[name].astype(np.float32), rtol=2e-3, atol=2e-3)
    for name, values in stored["train"].statistics().items():
        np.testing.assert_allclose(values, online["train"].statistics()[name], rtol=1e-4, atol=1e-4)


def test_a_run_on_pictures(caches: dict[str, Path], tmp_path: Path) -> None:
    trainer.train(config_of(caches["online"]), tmp_path / "run")
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.header is not None and loaded.header.dtype == "online" and loaded.step == 1
    with pytest.raises(ValueError, match=r"--data.workers 2: .* holds pictures, .* set it to 0"):
        opening.open_data(config_of(caches["online"], data={"workers": 2}))


def test_bytes_an_image(caches: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The header's account against the cells that Arrow holds; and SD-VAE's at 512 pixels, by hand."""
    for folder in caches.values():
        header, _ = cache.open_cache(folder, ())
        rows = cache.CachedSplit(folder, "train", header).take(np.arange(1), (*header.stored, "mean", "std"))
        picture = 3 * SIDE**2 if header.dtype == "online" else 0
        assert sum(header.bytes_an_image().values()) == header.views * (sum(x.nbytes for x in rows.values()) + picture)
    groups = {"G3": (4, 512, 32, 32), "G4": (4, 512, 32, 32)}
    at_512 = replace(header, resolution=512, latent_shape=(4, 64, 64), groups=groups, views=1, dtype="float16")
    assert at_512.bytes_an_image() == {"latent": 2**17, "G3": 2**22, "G4": 2**22}
    assert replace(at_512, dtype="online").bytes_an_image() == {"latent": 2**17, "image": 3 * 2**18}
    words = ("--data", pictures, "--vae", "demo", "--resolution", 64, "--patch", 1, "--heldout", 2, "--features", "pooled", "--workers", 0)
    assert call(prepare, *words, "--out", tmp_path / "c") == 0
    latent, group = 2 * 4 * 4 * 64, 2 * 64 * 64
    assert f"an image takes {latent + 2 * group} bytes: latent {latent}, G3 {group}, G4 {group}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("pooled:G3,G3", "each once"),
        ("online:", "each once"),
        ("mean:G3", "pooled or online"),
        ("online --dtype int8", "no features are stored"),
    ],
)
def test_bad_features(features: str, said: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        call(prepare, "--data", pictures, "--vae", "demo", "--out", tmp_path / "c", "--features", *features.split())


@pytest.mark.parametrize(("patch", "pixels", "grid"), [(14, 64, 8), (14, 512, 32), (16, 96, 3)])
def test_a_teacher_sees_its_patch_times_the_token_grid(patch: int, pixels: int, grid: int, tmp_path: Path) -> None:
    """448 pixels at 512; the same tokens as of an image that has that side already."""
    save_dino(tmp_path, patch_size=patch, image_size=5 * patch, num_hidden_layers=1)
    teacher = teachers.load(str(tmp_path))
    seen = []
    teacher.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    assert teacher.features(torch.zeros(1, 3, pixels, pixels), grid).shape == (1, 12, grid, grid)
    assert seen == [patch * grid] == [{8: 112, 32: 448, 3: 48}[grid]]


def test_other_grids_are_refused_or_resized(caches: dict[str, Path], tmp_path: Path) -> None:
    """A model of patch 2 has 8x8 tokens on these latents. Bilinear from 16 to 8 is the mean of each 2x2 (to float16)."""
    config = config_of(caches["layers"], "repa", model={"patch_size": 2})
    header, _ = opening.open_data(config)
    with pytest.raises(ValueError, match=r"teacher lie on a grid of 16x16 tokens, the model's tokens on 8x8: .* sees 112 pixels a side\)"):
        make_objective(config, header)
    resized = replace(config, data=replace(config.data, regrid="bilinear"))
    header, splits = opening.open_data(resized)
    assert header.groups["teacher"][-2:] == (8, 8) and header.groups["G3"][-2:] == (8, 8)
    stored = opening.open_prepared(caches["layers"], ())[1]["train"].take(np.arange(3), ("teacher",))["teacher"].astype(np.float64)
    mean = stored.reshape(3, 1, 128, 8, 2, 8, 2).mean((4, 6))
    np.testing.assert_allclose(splits["train"].take(np.arange(3), ("teacher",))["teacher"], mean, rtol=2e-3, atol=2e-3)
    trainer.train(resized, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["data"]["regrid"] == "bilinear"
    loaded = checkpoint.load(tmp_path / "run")
    assert opening.data_of(loaded, str(caches["layers"]))[0].groups == opening.data_of(loaded, None)[0].groups
    with pytest.raises(ValueError, match=r"latents of shape \(4, 16, 16\) \(128 pixels, 16 tokens a side\); the model wants 4x8\^2 \(64 pixels, 8"):
        make_objective(config_of(caches["layers"], model={"input_size": 8}), opening.open_prepared(caches["layers"], ())[0])


def test_a_new_start_at_twice_the_resolution(smoke_run: Path, caches: dict[str, Path], tmp_path: Path) -> None:
    """All weights but the table of positions; at an image of equal patches the table alone tells tokens apart."""
    out = tmp_path / "start"
    assert call(convert, "--ckpt", smoke_run, "--resolution", SIDE, "--out", out) == 0
    for weights in ("ema", "raw"):
        was, made = checkpoint.load(smoke_run, weights), checkpoint.load(out, weights)
        assert made.step == 0 and made.header is None and made.config.model == replace(was.config.model, input_size=GRID)
        assert made.groups["G3"] == (*was.groups["G3"][:2], GRID, GRID) and not (out / "optimizer.safetensors").exists()
        before, now = was.model.state_dict(), made.model.state_dict()
        assert torch.equal(now.pop("pos_embed"), sincos_2d(GRID, was.config.model.hidden_size)) and before.pop("pos_embed").shape[1] == 64
        assert all(torch.equal(now[name], before[name]) for name in before) and now.keys() == before.keys()
        for name, tensor in was.alignment.state_dict().items():
            assert torch.equal(made.alignment.state_dict()[name], tensor)
    origin = json.loads((out / "state.json").read_text())["converted"]
    assert origin["resolution"] == [64, SIDE] and origin["sha256"] == checkpoint.load(smoke_run, "ema").sha
    config = checkpoint.load(out).config
    objective = make_objective(config, replace(cache.read_header(caches["layers"]), num_classes=10))
    trainer.start_from(out, objective, config)
    for module, started in ((objective.model, checkpoint.load(out).model), (objective.alignment, checkpoint.load(out).alignment)):
        assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), started.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="its model's input_size is 8, this run's 16; `gsnr convert --resolution`"):
        trainer.start_from(smoke_run, objective, config)


def test_a_run_begins_with_the_weights_of_another(smoke_run: Path, tmp_path: Path) -> None:
    """At learning rate 0 they are the averaged weights of --init, bit for bit; of the alignment too, which is the same."""
    still = {"init": str(smoke_run), "steps": 1, "optim": {"lr": 0.0}, "trackers": "none"}
    trainer.train(resolve(presets.find("smoke"), still), tmp_path / "run")
    first, raw = checkpoint.load(smoke_run, "ema"), checkpoint.load(tmp_path / "run", "raw")
    for was, now in ((first.model, raw.model), (first.alignment, raw.alignment)):
        assert all(torch.equal(a, b) for a, b in zip(was.state_dict().values(), now.state_dict().values(), strict=True))
    assert raw.step == 1 and raw.config.init == str(smoke_run)
    with pytest.raises(ValueError, match="no such run or checkpoint"):
        trainer.train(resolve(presets.find("smoke"), still | {"init": str(tmp_path / "none")}), tmp_path / "other")


def test_a_new_start_from_a_foreign_file(tmp_path: Path) -> None:
    files = foreign_files.pair(heads=lambda: {"projectors": nn.ModuleList([foreign_files.mlp()])})
    foreign_files.write(tmp_path / "f.pt", *files, steps=12, encoder_depth=2, proj_coeff=0.5, enc_type="dinov2-vit-b")
    assert call(convert, "--ckpt", tmp_path / "f.pt", "--model", FOREIGN, "--out", tmp_path / "as-it-is") == 0
    assert call(convert, "--ckpt", tmp_path / "f.pt", "--model", FOREIGN, "--resolution", 128, "--out", tmp_path / "start") == 0
    was, now = checkpoint.load(tmp_path / "as-it-is"), checkpoint.load(tmp_path / "start")
    assert now.config.model.grid == 2 * was.config.model.grid and now.groups["teacher"][-1] == now.config.model.grid and now.step == 0
    assert all(torch.equal(a, b) for a, b in zip(was.alignment.state_dict().values(), now.alignment.state_dict().values(), strict=True))
    assert torch.equal(was.model.final_layer.linear.weight, now.model.final_layer.linear.weight)


@pytest.mark.parametrize(("side", "said"), [(64, "is of that resolution"), (100, "must be a multiple of 8, the pixels of a token")])
def test_bad_resolutions(side: int, said: str, smoke_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        call(convert, "--ckpt", smoke_run, "--resolution", side, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_macs_of_xl2_at_both_resolutions() -> None:
    """Published: 118.7 G at 256. At 512 linear terms grow by 4 and attention products by 16: 525.0 G (within 0.5 %)."""
    assert macs(resolve(presets.at("sit", "xl2"))).backbone / 1e9 == pytest.approx(118.7, rel=5e-3)
    config = resolve(presets.find("sit-xl2-512"))
    assert config.model.grid == 32 and macs(config).backbone / 1e9 == pytest.approx(525.0, rel=5e-3)


def kernel(n: int, m: int, bicubic: bool) -> np.ndarray:
    """(m, n): Pillow's resampling of n samples to m, box or cubic (Keys, a = -0.5), widened by the scale."""
    scale = n / m
    matrix = np.zeros((m, n))
    for i in range(m):
        centre, support = (i + 0.5) * scale, (2.0 if bicubic else 0.5) * scale
        for j in range(max(0, int(centre - support + 0.5)), min(n, int(centre + support + 0.5))):
            x = (j + 0.5 - centre) / scale
            d = abs(x)
            cubic = 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0
            matrix[i, j] = cubic if bicubic else float(-0.5 < x <= 0.5)
        matrix[i] /= matrix[i].sum()
    return matrix


@pytest.mark.parametrize("size", [(67, 149), (131, 65), (33, 47), (71, 71)])
def test_the_crop_of_odd_sizes(size: tuple[int, int]) -> None:
    """ADM's crop to 32 in float64: halved by a box while the short side is 64 or more, cubic to a short side of 32, the centre.

    Pillow rounds to 8 bits between its passes, so levels may differ by 2.
    """
    h, w = size
    y, x = np.mgrid[:h, :w]
    pixels = (127 + 60 * np.sin(x / 5.0) + 60 * np.cos(y / 7.0 + x / 11.0)).round()
    f = pixels.astype(np.float64)
    while min(f.shape) >= 64:
        rows, columns = f.shape[0] // 2, f.shape[1] // 2
        f = kernel(f.shape[0], rows, bicubic=False) @ f @ kernel(f.shape[1], columns, bicubic=False).T
    rows, columns = (round(n * 32 / min(f.shape)) for n in f.shape)
    f = kernel(f.shape[0], rows, bicubic=True) @ f @ kernel(f.shape[1], columns, bicubic=True).T
    top, left = (rows - 32) // 2, (columns - 32) // 2
    wanted = f[top : top + 32, left : left + 32].clip(0, 255)
    got = centre_crop(Image.fromarray(pixels.astype(np.uint8)), 32)
    assert np.abs(got[:, :, 0] - wanted).max() <= 2
