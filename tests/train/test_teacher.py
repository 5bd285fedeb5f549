"""Frozen teachers: DINOv2's map against transformers called directly, what is refused, and the demo's own."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from gsnr.train import teacher as teachers
from gsnr.train.demo import fit_teacher as fit
from gsnr.train.demo import images as demo
from gsnr.train.priors.features import to_pixels
from gsnr.train.vae import DEMO_FOLDER as VAE_FOLDER
from tests.conftest import call
from tests.train.dino_files import save_dino, with_positions_for

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    save_dino(folder)
    return folder


def bicubic(n: int, m: int) -> np.ndarray:
    """(m, n) float64: resizing n samples to m by the cubic kernel of Keys (1981) with a = -0.75, no antialiasing, edges repeated."""
    a, matrix = -0.75, np.zeros((m, n))
    for i in range(m):
        centre = (i + 0.5) * n / m - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d = abs(centre - j)
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), n - 1)] += weight
    return matrix


def by_hand(model: torch.nn.Module, x_BCHW: torch.Tensor, skip: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """Resized to 14 pixels per 16, normalised, through transformers' model, and each patch token put in its place."""
    side = x_BCHW.shape[-1] // 16
    resize = bicubic(16 * side, 14 * side)
    pixels = np.einsum("hH,bcHW,wW->bchw", resize, (x_BCHW.double().numpy() + 1) / 2, resize)
    pixels = (pixels - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    with torch.no_grad():
        tokens = with_positions_for(model, side)(pixel_values=torch.from_numpy(pixels).float()).last_hidden_state
    assert tokens.shape[1] == skip + side * side
    out = torch.empty(len(tokens), tokens.shape[2], side, side)
    for row in range(side):
        for column in range(side):
            out[:, :, row, column] = tokens[:, skip + row * side + column]
    return out


@pytest.mark.parametrize("registers", [0, 4])
def test_features_are_the_patch_tokens_of_the_resized_normalised_image(registers: int, tmp_path: Path) -> None:
    """Against transformers on an image normalised and resized in numpy; the class token and the registers are not among them.

    Tolerance: float32 through two layers whose outputs are of order 1; resize and normalisation are rounded in another order.
    """
    model = save_dino(tmp_path, registers)
    teacher = teachers.load(str(tmp_path))
    x = torch.rand(2, 3, 96, 96) * 2 - 1
    got = teacher.features(x)
    assert got.dtype == torch.float32 and got.shape == (2, teacher.channels, 6, 6) == (2, 12, teacher.grid(96), teacher.grid(96))
    torch.testing.assert_close(got, by_hand(model, x, 1 + registers, *IMAGENET), atol=1e-4, rtol=1e-4)


def test_tokens_lie_where_their_pixels_do(tmp_path: Path) -> None:
    """Without attention a token sees its own patch only: pixels amid the patch in row 1, column 3 change that cell and no other."""
    save_dino(tmp_path, num_hidden_layers=0)
    teacher = teachers.load(str(tmp_path))
    x = torch.zeros(1, 3, 80, 80)
    x[:, :, 16 + 4 : 32 - 4, 48 + 4 : 64 - 4] = 1.0
    changed = (teacher.features(x) != teacher.features(torch.zeros_like(x))).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(("resolution", "grid"), [(256, 16), (512, 32)])
def test_grids_are_those_of_repa(dino: Path, resolution: int, grid: int) -> None:
    teacher = teachers.load(str(dino))
    assert teacher.grid(resolution) == grid
    assert teacher.features(torch.zeros(1, 3, resolution, resolution)).shape == (1, 12, grid, grid)


def test_images_of_another_side_are_refused(dino: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 16 pixels, not 100"):
        teachers.load(str(dino)).features(torch.zeros(1, 3, 100, 100))


def test_the_folders_own_normalisation_is_used(dino: Path, tmp_path: Path) -> None:
    """And is part of the teacher's hash; the folder's name is not."""
    mean, std = [0.1, 0.2, 0.3], [0.7, 0.8, 0.9]
    model = save_dino(tmp_path)
    assert teachers.load(str(tmp_path)).sha == teachers.load(str(dino)).sha
    processor = {"image_processor_type": "BitImageProcessor", "image_mean": mean, "image_std": std, "size": {"shortest_edge": 30}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    teacher = teachers.load(str(tmp_path))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(teacher.features(x), by_hand(model, x, 1, mean, std), atol=1e-4, rtol=1e-4)
    assert teacher.sha != teachers.load(str(dino)).sha


def test_a_teacher_is_frozen(dino: Path) -> None:
    """Eval mode (its config asks for dropout), no gradients, float32 under autocast too."""
    teacher = teachers.load(str(dino))
    assert not any(m.training for m in teacher.model.modules())
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in teacher.model.parameters())
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    first = teacher.features(x)
    with torch.autocast("cpu", torch.bfloat16):
        second = teacher.features(x)
    assert torch.equal(first, second) and not first.requires_grad


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lacking(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def of_another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"layernorm.weight": torch.ones(13)}, folder / "model.safetensors", {"format": "pt"})


def of_another_kind(folder: Path) -> None:
    ViTModel(ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, ""),
        (truncated, ""),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lacking, "its weights lack layernorm.weight,"),
        (of_another_shape, "its weights lack layernorm.weight, or have it in another shape"),
        (of_another_kind, "its config.json names vit, not one of dinov2, dinov2_with_registers, ConvNet"),
        (lambda folder: (folder / "config.json").write_text("{"), ""),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}'), "has image_mean [0.5], not three numbers"),
    ],
)
def test_a_bad_folder_is_one_line(dino: Path, tmp_path: Path, damage, reason: str, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "dino"
    shutil.copytree(dino, folder)
    damage(folder)
    capfd.readouterr()
    with pytest.raises(ValueError) as caught:
        teachers.load(str(folder))
    assert str(caught.value).startswith(f"teacher '{folder}' cannot be loaded (name a DINOv2 folder, a hub id or `demo`): ")
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", ""), "what the libraries would log is in the error"


@pytest.mark.parametrize("name", ["nowhere", "facebook/no-such-model", str(VAE_FOLDER)])
def test_what_is_no_teacher_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be loaded \(name a DINOv2 folder, a hub id or `demo`\): ") as caught:
        teachers.load(name)
    assert len(str(caught.value).splitlines()) == 1
    assert name != str(VAE_FOLDER) or "names AutoencoderKL" in str(caught.value)


def test_the_demo_teacher_is_what_made_json_says() -> None:
    """The whole held-out split takes `gsnr fit-demo-teacher --check`; here 128 of its images, from the map alone.

    Slack: three standard deviations of the mean of 128 draws with an error of 0.2 % are 1.2 %.
    """
    made = json.loads((teachers.DEMO_FOLDER / "made.json").read_text())
    weights = (teachers.DEMO_FOLDER / "diffusion_pytorch_model.safetensors").read_bytes()
    assert made["heldout_accuracy"] >= 0.95 and made["demo_data_version"] == demo.VERSION
    assert made["weights_sha256"] == hashlib.sha256(weights).hexdigest() and len(weights) < 2e6
    teacher = teachers.load("demo")
    images, labels = demo.images("heldout", 128)
    features = teacher.features(to_pixels(images))
    assert features.shape == (128, 128, 8, 8) and teacher.channels == 128 and teacher.grid(64) == 8
    head = teacher.model.get_submodule("head")
    predicted = F.linear(features.flatten(2).mean(2), head.weight, head.bias).argmax(1)
    assert (predicted.numpy() == labels).mean() >= made["heldout_accuracy"] - 0.012
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in teacher.model.parameters())
    assert teacher.features(torch.zeros(1, 3, 96, 96)).shape == (1, 128, 12, 12), "fully convolutional"


def test_fitting_writes_a_teacher_and_never_over_one(dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "TRAIN_IMAGES", 32)
    monkeypatch.setattr(fit, "HELDOUT", 16)
    out = tmp_path / "teacher"
    assert call(fit.main, "--out", out, "--steps", 2, "--batch", 4) == 0
    made = json.loads((out / "made.json").read_text())
    assert (made["steps"], made["batch"], made["heldout_images"]) == (2, 4, 16) and 0 <= made["heldout_accuracy"] <= 1
    assert teachers.load(str(out)).channels == 128
    assert call(fit.main, "--check", "--out", out) == 0
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        call(fit.main, "--out", out)
    with pytest.raises(ValueError, match="name a folder that this command wrote"):
        call(fit.main, "--check", "--out", dino)


def test_jitter_moves_images_a_little() -> None:
    """At the middle of its ranges it returns the image (tolerance: bilinear weights in float32); else another with no new pixel values."""
    x = to_pixels(demo.images("train", 4)[0])

    class Middle:
        def uniform(self, low: float, high: float, size: object) -> np.ndarray:
            return np.full(size, (low + high) / 2)

    torch.testing.assert_close(fit.jitter(x, Middle()), x, atol=1e-4, rtol=0)
    moved = fit.jitter(x, np.random.default_rng(0))
    assert moved.shape == x.shape and moved.abs().max() <= 1.001
    assert 0.01 < (moved - x).abs().mean() < 0.5
