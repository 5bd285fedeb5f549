"""Latents that REPA and iREPA prepared: read as they lie, normalised as their code does, split as ours; what they lack is said."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from gsnr.train.config import resolve
from gsnr.train.data import cache, heldout, permutation, rng
from gsnr.train.data.batches import StepBatches
from gsnr.train.data.latent_folders import open_folder
from gsnr.train.opening import open_data
from tests.conftest import call

N, SHAPE = 20, (8, 8, 8)  # the demo VAE's moments
RNG = np.random.default_rng(0)
MOMENTS = RNG.normal(size=(N, *SHAPE)).astype(np.float32)
MOMENTS[:, 4:] = np.abs(MOMENTS[:, 4:]) / 10
LABELS = RNG.integers(0, 10, N)
SCALE, BIAS = np.array([0.5, 1.0, 2.0, 4.0]), np.array([0.1, -0.2, 0.3, 0.0])


@pytest.fixture
def repa(tmp_path: Path) -> Path:
    folder = tmp_path / "repa"
    (folder / "vae-sd" / "00000").mkdir(parents=True)
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(N)]
    for name, moments in zip(names, MOMENTS, strict=True):
        np.save(folder / "vae-sd" / name, moments)
    (folder / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": [[n, int(y)] for n, y in zip(names, LABELS, strict=True)][::-1]}))
    return folder


@pytest.fixture(params=["nested", "leading one", "Array3D, float16"])
def irepa(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "work" / "data"
    features = datasets.Features({"data": datasets.Array3D(SHAPE, "float16")}) if request.param.startswith("Array") else None
    cells = MOMENTS[:, None] if request.param == "leading one" else MOMENTS
    made = datasets.Dataset.from_dict({"data": list(cells)}, features=features)
    made.save_to_disk(str(folder / "imagenet-latents-sdvae-ft-mse-f8d4"), num_shards=3)
    (folder / "imagenet_train_labels.txt").write_text("".join(f"{y}\n" for y in LABELS))
    (tmp_path / "work" / "pretrained_models").mkdir()
    statistics = {"latents_scale": torch.tensor(SCALE).view(1, 4, 1, 1), "latents_bias": torch.tensor(BIAS).view(1, 4, 1, 1)}
    torch.save(statistics, tmp_path / "work" / "pretrained_models" / "sdvae-ft-mse-f8d4-latents-stats.pt")
    return folder


def opened(folder: Path, alignment: str = "none", **changes: object) -> tuple[cache.Header, dict[str, cache.Split]]:
    data = {"path": str(folder), "vae": "demo", "heldout": 5} | changes
    return open_data(resolve({"data": data, "alignment": {"name": alignment}, "model": {"num_classes": 10, "input_size": 8}}))


def check_rows(header: cache.Header, splits: dict[str, cache.Split], atol: float = 0.0) -> None:
    members = heldout.choose(N, 5)
    assert header.latent_shape == (4, 8, 8) and header.groups == {} and header.sizes == {"train": 15, "heldout": 5} and header.vae == "demo"
    for name, split in splits.items():
        assert split.size == len(members[name])
        index = np.array([3, 0, 4])
        for s in (split, pickle.loads(pickle.dumps(split))):
            rows = s.take(index, ("mean", "std", "label", "image_id"))
            np.testing.assert_array_equal(rows["image_id"], members[name][index])
            np.testing.assert_array_equal(rows["label"], LABELS[members[name][index]])
            np.testing.assert_allclose(rows["mean"], MOMENTS[members[name][index], :4], rtol=0, atol=atol)
            np.testing.assert_allclose(rows["std"], MOMENTS[members[name][index], 4:], rtol=0, atol=atol)
            assert rows["mean"].dtype == np.float32
        assert split.statistics() == {}


def first_batch(split: cache.Split) -> tuple[np.ndarray, np.ndarray]:
    """(final latents of a training step, raw ones from the arrays above), in float64."""
    batch = StepBatches(split=split, groups=(), batch=8, seed=0, label_dropout=0.0)[0]
    drawn = rng.draw(0, "train", np.arange(8), (4, 8, 8))
    moments = MOMENTS[heldout.choose(N, 5)["train"][permutation.image_of(np.arange(8), 15, 0)]].astype(np.float64)
    return batch["latent"].numpy(), moments[:, :4] + moments[:, 4:] * drawn.posterior


def test_repa(repa: Path) -> None:
    for folder in (repa, repa / "vae-sd"):
        header, splits = opened(folder, "sra2")
        check_rows(header, splits)
    from gsnr.train import vae

    assert header.scale == vae.load("demo").scaling.factor and header.resolution == 64
    final, raw = first_batch(splits["train"])
    np.testing.assert_allclose(final, raw * header.scale, rtol=1e-5, atol=1e-6)


def test_irepa(irepa: Path, request: pytest.FixtureRequest) -> None:
    """final = (raw - bias) scale, as in its training loop; decoding undoes it."""
    atol = 2e-3 if "float16" in request.node.name else 0.0
    header, splits = opened(irepa)
    check_rows(header, splits, atol)
    check_rows(*opened(irepa / "imagenet-latents-sdvae-ft-mse-f8d4"), atol)
    final, raw = first_batch(splits["train"])
    np.testing.assert_allclose(final, (raw - BIAS.reshape(4, 1, 1)) * SCALE.reshape(4, 1, 1), rtol=1e-4, atol=1e-5 + 4 * atol)
    for kind in (final, torch.from_numpy(final)):
        np.testing.assert_allclose(np.asarray(header.scaling.raw(kind)), raw, rtol=1e-4, atol=1e-5 + atol)
    by_vae, _ = opened(irepa, latent_stats="vae")
    assert by_vae.channel_scale == () and by_vae.scale != 1
    assert cache.header_from(json.loads(json.dumps(header.__dict__))) == header


def test_irepa_takes_labels_from_the_images_beside_it(irepa: Path) -> None:
    (irepa / "imagenet_train_labels.txt").unlink()
    with pytest.raises(ValueError, match=r"neither imagenet-latents-images nor imagenet_train_labels\.txt is there"):
        opened(irepa)
    pictures = datasets.Dataset.from_dict({"image": [b"a picture"] * N, "label": LABELS.tolist()})
    pictures.save_to_disk(str(irepa / "imagenet-latents-images"))
    check_rows(*opened(irepa), 2e-3)
    shutil.rmtree(irepa / "imagenet-latents-images")
    pictures.select(range(7)).save_to_disk(str(irepa / "imagenet-latents-images"))
    with pytest.raises(ValueError, match="20 latents, but 7 labels beside it"):
        opened(irepa)


def test_what_they_lack_is_said(repa: Path, irepa: Path) -> None:
    for folder, pictures, kind in ((repa, repa / "images", "REPA"), (irepa, irepa / "imagenet-latents-images", "iREPA")):
        with pytest.raises(ValueError, match=rf"{kind} latents do not say which VAE made them; name it with --data\.vae"):
            opened(folder, vae="")
        command = rf"hold no features of G3, G4; .*gsnr prepare --data {pictures} --vae demo --features G3,G4 --out CACHE"
        with pytest.raises(ValueError, match=command):
            opened(folder, "ahpa")
        with pytest.raises(ValueError, match=r"--vae ID --teacher facebook/dinov2-base --out CACHE"):
            opened(folder, "repa", vae="")
        with pytest.raises(ValueError, match=r"--data\.heldout 20: must be at least 1 and leave some of the 20 images"):
            opened(folder, heldout=20)
        with pytest.raises(ValueError, match=r"its label is \d; with 2 classes it must be 0 to 1"):
            open_data(resolve({"data": {"path": str(folder), "vae": "demo", "heldout": 5}, "model": {"num_classes": 2}}))
    with pytest.raises(ValueError, match=r"no such file.*--data\.latent-stats, or `vae`"):
        opened(irepa, latent_stats="nowhere.pt")
    (irepa / "text.pt").write_text("no tensors")
    with pytest.raises(ValueError, match=r"text\.pt: not the latents' statistics"):
        opened(irepa, latent_stats=str(irepa / "text.pt"))
    with pytest.raises(ValueError, match="REPA latents take the VAE's scaling factor"):
        opened(repa, latent_stats="x.pt")
    (irepa / "imagenet-latents-other").mkdir()
    shutil.copy(irepa / "imagenet-latents-sdvae-ft-mse-f8d4" / "state.json", irepa / "imagenet-latents-other")
    with pytest.raises(ValueError, match=r"latents of several VAEs; name one of .*other, .*f8d4"):
        opened(irepa)
    assert open_folder(resolve({"data": {"path": str(irepa.parent)}}).data, (), 10) is None


def test_damage_is_named(repa: Path, irepa: Path) -> None:
    _, splits = opened(repa)
    image = repa / "vae-sd" / "00000" / f"img-mean-std-{heldout.choose(N, 5)['train'][3]:08d}.npy"
    index = np.array([3])
    for content in (image.read_bytes()[:-1], b"", image.read_bytes()[:40]):
        image.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{image.name}: missing or damaged"):
            splits["train"].take(index, ("mean",))
    np.save(image, np.zeros((8, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"shape \(8, 4, 4\), not \(8, 8, 8\)"):
        splits["train"].take(index, ("std",))
    assert splits["train"].take(index, ("label",))["label"].shape == (1,)
    image.unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        splits["train"].take(index, ("mean",))
    np.save(repa / "vae-sd" / "00000" / "img-mean-std-00000000.npy", np.zeros((32, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"moments of shape \(32, 8, 8\); the VAE 'demo' makes 8, 8, 8"):
        opened(repa)
    shard = sorted((irepa / "imagenet-latents-sdvae-ft-mse-f8d4").glob("*.arrow"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{shard.name}: damaged or incomplete"):
        opened(irepa)
    (irepa / "imagenet_train_labels.txt").write_text("n01440764\n" * N)
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name}: missing"):
        opened(irepa)


@pytest.mark.parametrize("alignment", ["none", "sra", "sra2"])
def test_they_train(repa: Path, tmp_path: Path, alignment: str) -> None:
    from gsnr.train.command import main
    from gsnr.train.evaluate import evaluate

    small = ("--model.input-size", 8, "--model.patch-size", 2, "--model.hidden-size", 16, "--model.depth", 3, "--model.num-heads", 2)
    words = ("--preset", "sit-b2", "--alignment", alignment, *small, "--model.num-classes", 10, "--precision", "no", "--steps", 2, "--batch", 4)
    data = ("--data.path", repa, "--data.vae", "demo", "--data.heldout", 5, "--data.workers", 0)
    taps = ("--alignment.tap", 1, *(("--alignment.teacher-tap", 2) if alignment == "sra" else ())) if alignment != "none" else ()
    run = tmp_path / "run"
    assert call(main, *words, *data, *taps, "--out", run) == 0
    assert call(main, *words, *data, *taps, "--out", run, "--steps", 3, "--resume") == 0
    assert np.isfinite(evaluate(run)["velocity_loss"])


@pytest.mark.parametrize("kind", ["repa", "irepa"])
def test_other_latents_under_the_same_names(kind: str, repa: Path, tmp_path: Path) -> None:
    """Trained on one set, resumed and measured on another: this used to go through. A folder that was moved is the same."""
    from gsnr.train.command import main
    from gsnr.train.opening import data_of
    from gsnr.train.runs import checkpoint

    def write(moments: np.ndarray) -> Path:
        if kind == "repa":
            for i, one in enumerate(moments):
                np.save(repa / "vae-sd" / "00000" / f"img-mean-std-{i:08d}.npy", one)
            return repa
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        datasets.Dataset.from_dict({"data": list(moments)}).save_to_disk(str(tmp_path / "data" / "imagenet-latents-x"))
        (tmp_path / "data" / "imagenet_train_labels.txt").write_text("".join(f"{y}\n" for y in LABELS))
        return tmp_path / "data"

    words = ("--preset", "smoke", "--alignment", "none", "--model.num-classes", "10", "--data.vae", "demo", "--data.heldout", "5", "--batch", "4")
    words += ("--data.latent-stats", "vae", "--trackers", "none", "--data.workers", "0", "--out", tmp_path / "run")
    folder = write(MOMENTS)
    assert call(main, *words, "--data", folder, "--steps", "1") == 0
    moved = folder.rename(folder.with_name("moved"))
    assert call(main, *words, "--data", moved, "--steps", "2", "--resume") == 0
    moved.rename(folder)
    write(MOMENTS[::-1])
    with pytest.raises(ValueError, match=r"--resume: .* was trained on data whose rows_sha was"):
        call(main, *words, "--data", folder, "--steps", "3", "--resume")
    loaded = checkpoint.load(tmp_path / "run" / "checkpoints" / "0000001")
    with pytest.raises(ValueError, match=r"holds other rows than when it was trained on them"):
        data_of(loaded, None)
    write(MOMENTS)
    assert data_of(loaded, None)[0].rows_sha == loaded.header.rows_sha != {}
