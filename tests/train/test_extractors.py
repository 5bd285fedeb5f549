"""Extractors, found by file name: their contract; resizing against float64 loops; the Inception network layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

from gsnr import plugins
from gsnr.train.contracts import extractors as contract
from gsnr.train.extractors import _inception, _resize, inception
from gsnr.train.extractors._inception import Inception

Array = np.ndarray


@pytest.mark.parametrize("name", plugins.names("extractors"))
def test_contract(name: str) -> None:
    assert contract.check(name)


def linear_taps(size: int, side: int, half: bool) -> list[dict[int, float]]:
    """Target pixel -> weights of source pixels."""
    taps = []
    for i in range(side):
        source = max((i + 0.5) * size / side - 0.5, 0) if half else i * size / side
        first = int(source)
        found: dict[int, float] = {}
        for at, weight in ((first, 1 - source + first), (min(first + 1, size - 1), source - first)):
            found[at] = found.get(at, 0) + weight
        taps.append(found)
    return taps


def cubic_taps(size: int, side: int) -> list[dict[int, float]]:
    """Pillow's: the kernel with a = -1/2 is stretched where the image becomes smaller, cut at the border and made to sum to 1."""
    stretch = max(size / side, 1.0)

    def kernel(x: float) -> float:
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    taps = []
    for i in range(side):
        centre = (i + 0.5) * size / side
        weights = {j: kernel((j + 0.5 - centre) / stretch) for j in range(size)}
        taps.append({j: w / sum(weights.values()) for j, w in weights.items()})
    return taps


def looped(image_HWC: Array, down: list[dict[int, float]], across: list[dict[int, float]]) -> Array:
    out = np.zeros((3, len(down), len(across)))
    for c in range(3):
        for y, rows in enumerate(down):
            for x, columns in enumerate(across):
                out[c, y, x] = sum(v * w * float(image_HWC[j, i, c]) for j, v in rows.items() for i, w in columns.items())
    return out.clip(0, 255)


@pytest.mark.parametrize("side", [5, 11, 14])
@pytest.mark.parametrize(
    ("resize", "taps"),
    [
        (_resize.tensorflow_bilinear, lambda size, side: linear_taps(size, side, half=False)),
        (_resize.half_pixel_bilinear, lambda size, side: linear_taps(size, side, half=True)),
        (_resize.pillow_bicubic, cubic_taps),
    ],
)
def test_resizing_is_a_loop(resize: Callable, taps: Callable, side: int) -> None:
    """To float32's rounding: 255 * 2^-17. Up and down, and an image that is not square."""
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), np.uint8)
    found = resize(images, side)
    assert found.dtype == torch.float32 and found.shape == (2, 3, side, side)
    for image, mine in zip(images, found.numpy(), strict=True):
        np.testing.assert_allclose(mine, looped(image, taps(9, side), taps(7, side)), atol=2e-3, rtol=0)


def test_modes_end_in_the_range_of_the_network() -> None:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    for mode, ends in {"adm": (-1.0, 127 / 128), "pytorch-fid": (-1.0, 1.0), "clean-fid": (-1.0, 127 / 128)}.items():
        extractor = inception.Extractor.__new__(inception.Extractor)
        extractor.mode = mode
        found = [float(extractor.prepare(images + np.uint8(value)).mean()) for value in (0, 255)]
        assert found == pytest.approx(ends, abs=1e-6), mode


# block -> branches in their order, each a chain of (name, kernel, stride, padding), or "average", "largest", "strided"; written from the paper's
# figures and TensorFlow's graph, not from our code
def c(name: str, kernel: tuple[int, int] = (1, 1), stride: int = 1, padding: tuple[int, int] = (0, 0)) -> tuple:
    return (name, kernel, stride, padding)


ROW3, COLUMN3, ROW7, COLUMN7 = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0)), ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
FULL3 = ((3, 3), 1, (1, 1))
BLOCKS: dict[str, tuple[Callable[[], nn.Module], int, list[list[Any]]]] = {
    "A": (
        lambda: _inception.A(192, 32),
        192,
        [
            [c("branch1x1")],
            [c("branch5x5_1"), c("branch5x5_2", (5, 5), 1, (2, 2))],
            [c("branch3x3dbl_1"), c("branch3x3dbl_2", *FULL3), c("branch3x3dbl_3", *FULL3)],
            ["average", c("branch_pool")],
        ],
    ),
    "B": (
        lambda: _inception.B(288),
        288,
        [
            [c("branch3x3", (3, 3), 2)],
            [c("branch3x3dbl_1"), c("branch3x3dbl_2", *FULL3), c("branch3x3dbl_3", (3, 3), 2)],
            ["strided"],
        ],
    ),
    "C": (
        lambda: _inception.C(768, 128),
        768,
        [
            [c("branch1x1")],
            [c("branch7x7_1"), c("branch7x7_2", *ROW7), c("branch7x7_3", *COLUMN7)],
            [
                c("branch7x7dbl_1"),
                c("branch7x7dbl_2", *COLUMN7),
                c("branch7x7dbl_3", *ROW7),
                c("branch7x7dbl_4", *COLUMN7),
                c("branch7x7dbl_5", *ROW7),
            ],
            ["average", c("branch_pool")],
        ],
    ),
    "D": (
        lambda: _inception.D(768),
        768,
        [
            [c("branch3x3_1"), c("branch3x3_2", (3, 3), 2)],
            [c("branch7x7x3_1"), c("branch7x7x3_2", *ROW7), c("branch7x7x3_3", *COLUMN7), c("branch7x7x3_4", (3, 3), 2)],
            ["strided"],
        ],
    ),
}
for letter, inputs, last in (("E1", 1280, False), ("E2", 2048, True)):
    BLOCKS[letter] = (
        lambda inputs=inputs, last=last: _inception.E(inputs, last),
        inputs,
        [
            [c("branch1x1")],
            [c("branch3x3_1"), c("branch3x3_2a", *ROW3)],
            [c("branch3x3_1"), c("branch3x3_2b", *COLUMN3)],
            [c("branch3x3dbl_1"), c("branch3x3dbl_2", *FULL3), c("branch3x3dbl_3a", *ROW3)],
            [c("branch3x3dbl_1"), c("branch3x3dbl_2", *FULL3), c("branch3x3dbl_3b", *COLUMN3)],
            ["largest" if last else "average", c("branch_pool")],
        ],
    )


def convolved(x_CHW: Array, weights: dict[str, Array], name: str, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> Array:
    """Convolution by shifted products, batch norm by its formula, ReLU; float64."""
    w = weights[f"{name}.conv.weight"]
    assert w.shape[2:] == kernel
    padded = np.pad(x_CHW, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
    height, width = ((size - k) // stride + 1 for size, k in zip(padded.shape[1:], kernel, strict=True))
    y = np.zeros((len(w), height, width))
    for i, j in np.ndindex(*kernel):
        y += np.tensordot(w[:, :, i, j], padded[:, i : i + stride * height : stride, j : j + stride * width : stride][:, :height, :width], 1)
    mean, var, gain, bias = (weights[f"{name}.bn.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias"))
    return np.maximum((y - mean) / np.sqrt(var + 0.001) * gain + bias, 0)


def pooled(x_CHW: Array, how: str) -> Array:
    """3 x 3, places outside the image left out."""
    stride, reach = (2, range(0, 3)) if how == "strided" else (1, range(-1, 2))
    side = (x_CHW.shape[1] - 3) // 2 + 1 if how == "strided" else x_CHW.shape[1]
    y = np.zeros((len(x_CHW), side, side))
    for i, j in np.ndindex(side, side):
        places = [(stride * i + a, stride * j + b) for a in reach for b in reach]
        window = np.stack([x_CHW[:, a, b] for a, b in places if 0 <= a < x_CHW.shape[1] and 0 <= b < x_CHW.shape[2]])
        y[:, i, j] = window.mean(0) if how == "average" else window.max(0)
    return y


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_its_layers(name: str) -> None:
    make, inputs, branches = BLOCKS[name]
    torch.manual_seed(0)
    block = made_lively(make())
    weights = {key: x.double().numpy() for key, x in block.state_dict().items()}
    x = torch.randn(1, inputs, 7, 7)
    expected = []
    for branch in branches:
        h = x[0].double().numpy()
        for step in branch:
            h = pooled(h, step) if isinstance(step, str) else convolved(h, weights, *step)
        expected.append(h)
    with torch.no_grad():
        found = block(x)[0].double().numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-3, atol=1e-4)
    used = {step[0] for branch in branches for step in branch if not isinstance(step, str)}
    assert used == {key.split(".")[0] for key in weights}, "every layer is used"


def made_lively(module: nn.Module) -> nn.Module:
    """Batch norms away from the identity."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.2)
            m.running_mean.normal_(std=0.2)
            m.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.fixture(scope="module")
def network() -> Inception:
    torch.manual_seed(0)
    return Inception().eval().requires_grad_(False)


def test_names_and_number_of_weights(network: Inception) -> None:
    """torchvision counts 27,161,264 with the auxiliary head (128 + 768 channels, 1000 classes) and 1000 classes; here are 1008 and no such head."""
    auxiliary = (768 * 128 + 2 * 128) + (128 * 768 * 25 + 2 * 768) + (768 * 1000 + 1000)
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - auxiliary + 8 * 2049 == 23_850_960
    keys = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    kinds = {"5b": "A", "5c": "A", "5d": "A", "6a": "B", "6b": "C", "6c": "C", "6d": "C", "6e": "C", "7a": "D", "7b": "E1", "7c": "E2"}
    layers = {f"Mixed_{at}.{step[0]}" for at, kind in kinds.items() for branch in BLOCKS[kind][2] for step in branch if not isinstance(step, str)}
    layers |= {f"Conv2d_{name}" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")}
    of_layer = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    assert keys == {f"{layer}.{key}" for layer in layers for key in of_layer} | {"fc.weight", "fc.bias"}
    assert len(layers) == 94


def test_what_the_network_gives(network: Inception) -> None:
    """The spatial features are a branch of the third block of 17 x 17, places first; probabilities take no bias."""
    caught: dict[str, torch.Tensor] = {}
    hooks = [
        network.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _x, y: caught.__setitem__("branch", y)),
        network.Mixed_7c.register_forward_hook(lambda _m, _x, y: caught.__setitem__("last", y)),
    ]
    network.fc.bias.normal_(std=5)
    found = network(torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    for hook in hooks:
        hook.remove()
    assert caught["branch"].shape == (1, 192, 17, 17) and caught["last"].shape == (1, 2048, 8, 8)
    assert {kind: tuple(x.shape) for kind, x in found.items()} == {"pool": (1, 2048), "spatial": (1, 2023), "probabilities": (1, 1008)}
    assert found["spatial"][0, (5 * 17 + 3) * 7 + 4] == caught["branch"][0, 4, 5, 3]
    torch.testing.assert_close(found["pool"][0].double(), caught["last"][0].double().mean((1, 2)), rtol=1e-5, atol=1e-6)
    logits = network.fc.weight.double().numpy() @ found["pool"][0].double().numpy()
    np.testing.assert_allclose(found["probabilities"][0], np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)


def test_weights_are_known_by_their_hash(network: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(inception.ENVIRONMENT, raising=False)
    path = tmp_path / "weights.pth"
    state = {key: x for key, x in network.state_dict().items() if not key.endswith(inception.COUNTER)}
    torch.save(state, path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"weights.pth: SHA-256 {sha[:8]}..., not 6726825d...: not the network of FID; the file is at https://"):
        inception.Extractor(str(path))
    with pytest.raises(ValueError, match=r"name the weights with --weights-file or \$INCEPTION_WEIGHTS: a path, or https://"):
        inception.Extractor(None)
    with pytest.raises(ValueError, match="nowhere: no such file of weights"):
        inception.Extractor("nowhere")
    monkeypatch.setattr(inception, "SHA", sha[:8])
    monkeypatch.setenv(inception.ENVIRONMENT, str(path))
    loaded = inception.Extractor(None)
    assert loaded.sha == sha and torch.equal(loaded.model.state_dict()["Mixed_7c.branch_pool.bn.bias"], state["Mixed_7c.branch_pool.bn.bias"])
    del state["Mixed_6a.branch3x3.bn.bias"]
    torch.save(state, path)
    monkeypatch.setattr(inception, "SHA", "")
    with pytest.raises(ValueError, match=r"weights.pth: its weights lack Mixed_6a.branch3x3.bn.bias"):
        inception.Extractor(None)
    with pytest.raises(ValueError, match=r"--mode of features inception: 'amd' does not exist; choose from adm, pytorch-fid, clean-fid"):
        inception.Extractor.mode_of("amd")


def test_weights_from_an_address_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSNR_CACHE", str(tmp_path))
    asked = []

    def download(url: str, to: str, hash_prefix: str) -> None:
        asked.append(url)
        if hash_prefix != inception.SHA or "broken" in url:
            raise RuntimeError("invalid hash value")
        Path(to).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(inception, "SHA", hashlib.sha256(b"weights").hexdigest()[:8])
    first = inception._file("https://host/a.pth")
    assert inception._file("https://host/a.pth") == first and first.read_bytes() == b"weights" and asked == ["https://host/a.pth"]
    with pytest.raises(ValueError, match=r"--weights-file https://host/broken.pth: cannot be fetched .invalid hash value."):
        inception._file("https://host/broken.pth")
    assert [p.name for p in (tmp_path / "weights").iterdir()] == [first.name]


def test_encoders_from_folders(tmp_path: Path) -> None:
    """DINOv2's class token and CLIP's unit embeddings, as the libraries give them for the image that Pillow resized; other folders are refused."""
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), np.uint8)
    clip, dino = (plugins.find("extractors", name).Extractor for name in ("clip", "dinov2"))
    for cls, folder in ((clip, tmp_path / "clip"), (dino, tmp_path / "dino")):
        cls.example().model.save_pretrained(folder)
        assert cls(str(folder)).sha == cls.example().sha
    small = np.stack([np.asarray(Image.fromarray(image[0, ..., i].astype(np.float32)).resize((28, 28), Image.Resampling.BICUBIC)) for i in range(3)])
    mean, std = ((np.array(x)[:, None, None]) for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    pixels = torch.from_numpy((small.clip(0, 255) / 255 - mean) / std).float()[None]
    with torch.no_grad():
        raw = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "clip")(pixels).image_embeds[0]
    found = clip(str(tmp_path / "clip"))(image)["pool"][0]
    np.testing.assert_allclose(found, raw / raw.norm(), rtol=1e-3, atol=1e-5)
    assert dino(str(tmp_path / "dino")).prepare(image).shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match=r"features dinov2: '.*clip' cannot be loaded|its weights lack"):
        dino(str(tmp_path / "clip"))
    with pytest.raises(ValueError, match=r"features clip: .*nothing' cannot be loaded .name a folder or hub id with --weights-file.:"):
        clip(str(tmp_path / "nothing"))
