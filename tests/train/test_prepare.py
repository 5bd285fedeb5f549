"""`gsnr prepare`: from a folder of pictures to a run, with any AutoencoderKL saved in the hub's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from gsnr.train.data import cache, permutation, rng
from gsnr.train.data.batches import StepBatches
from gsnr.train.data.heldout import heldout_batches, order
from gsnr.train.prepare.command import main
from gsnr.train.prepare.images import centre_crop
from tests.conftest import call


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE with random weights and a scaling factor of its own, on disk as the hub keeps it."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("vae")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(block_out_channels=(4, 8, 16, 16), layers_per_block=2, norm_num_groups=4, scaling_factor=0.5, **blocks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of ten pictures of odd sizes, one of them grey."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "eel"):
        (folder / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 255, (70 + 3 * i, 90), dtype=np.uint8) if i == 0 else rng.integers(0, 255, (70 + 3 * i, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "cat" / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures_trains_and_is_probed(pictures: Path, vae_folder: Path, tmp_path: Path) -> None:
    from gsnr.probes.common.command import main as probe
    from gsnr.train.command import main as train
    from gsnr.train.demo.cache import demo_cache

    out = tmp_path / "cache"
    words = ("--data", pictures, "--vae", vae_folder, "--resolution", "32", "--patch", "2", "--heldout", "6", "--out", out)
    assert call(main, *words) == 0
    header, splits = cache.open_cache(out, ("G3", "G4"))
    assert header.latent_shape == (4, 4, 4) and header.groups == {"G3": (4, 16, 2, 2), "G4": (4, 16, 2, 2)}
    assert header.scale == 0.5 and header.num_classes == 3
    assert splits["train"].size == 24 and splits["heldout"].size == 6
    labels = np.concatenate([s.take(np.arange(s.size), ("label",))["label"] for s in splits.values()])
    assert sorted(labels) == sorted([0, 1, 2] * 10)
    small = ("--model.input-size", 4, "--model.hidden-size", 16, "--model.depth", 2, "--model.num-heads", 2, "--model.num-classes", 3)
    run = tmp_path / "run"
    common = ("--preset", "ahpa-b2", "--data.path", out, "--data.workers", 0, "--precision", "no", "--steps", 2, "--batch", 8)
    assert call(train, *common, *small, "--out", run) == 0
    assert call(probe, "--ckpt", run, "--probe", "alignment,controls,router", "--bins", 2, "--n-images", 6, "--fit-samples", 128) == 0
    with pytest.raises(ValueError, match="not the VAE that made the latents"):
        call(probe, "--ckpt", run, "--vae", "demo")
    with pytest.raises(ValueError, match=r"trained with VAE .* but the data were encoded by 'demo'"):
        call(probe, "--ckpt", run, "--data", demo_cache(256, 256, "adaptive"))
    with pytest.raises(ValueError, match="the cache has 3 classes, the model 1000"):
        call(train, *common, *small[:-2], "--out", tmp_path / "other")
    with pytest.raises(ValueError, match=r"latents of shape \(4, 4, 4\)"):
        call(train, *common, "--model.num-classes", 3, "--out", tmp_path / "other")


def test_centre_crop() -> None:
    """Short side to 32, the centre kept, grey made RGB; a picture of the right size comes through untouched."""
    exact = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(exact), 32), exact)
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = exact
    np.testing.assert_array_equal(centre_crop(Image.fromarray(wide), 32), exact)
    for size in ((33, 70), (500, 64), (31, 31), (64, 64)):
        assert centre_crop(Image.new("L", size, 128), 32).shape == (32, 32, 3)
    doubled = exact.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(doubled), 32), exact)


def options(*words: object, **changes: object) -> list[str]:
    """--flag value for each change, and the words as they are."""
    return [str(w) for flag, value in changes.items() for w in (f"--{flag.replace('_', '-')}", value)] + [str(w) for w in words]


def prepare(*words: object, **changes: object) -> None:
    assert main(options(*words, **{"resolution": 32, "heldout": 6} | changes)) == 0


@pytest.fixture(scope="module")
def flipped(pictures: Path, vae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """dtype -> a cache with two views, all groups, in several shards."""
    folder = tmp_path_factory.mktemp("flipped")
    for dtype in ("float16", "int8"):
        prepare("--flip", data=pictures, vae=vae_folder, out=folder / dtype, dtype=dtype, shard=7, batch=4, features="G1,G2,G3,G4", workers=1)
    return {path.name: path for path in folder.iterdir()}


def test_rows_are_what_the_vae_says_of_the_picture_and_of_its_mirror_image(pictures: Path, vae_folder: Path, flipped: dict[str, Path]) -> None:
    from gsnr.train import vae
    from gsnr.train.prepare.sources import open_source
    from gsnr.train.priors.features import encode

    header, splits = cache.open_cache(flipped["float16"], ("G1", "G4"))
    assert header.views == 2 and header.sizes == {"train": 24, "heldout": 6} and header.preprocessing_sha and header.options_sha
    assert len(list((flipped["float16"] / "train").glob("*.arrow"))) == 4
    source, _ = open_source(str(pictures))
    frozen = vae.load(str(vae_folder))
    split, index = splits["train"], np.array([23, 0, 11])
    for view in (0, 1):
        rows = split.take(index, ("mean", "std", "G1", "G4", "image_id", "label", "view"), view)
        assert rows["view"].tolist() == [view] * 3 and rows["label"].tolist() == source.labels[rows["image_id"]].tolist()
        crops = np.stack([centre_crop(source.image(i), 32) for i in rows["image_id"]])
        pixels = torch.from_numpy((crops[:, :, ::-1] if view else crops).copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        mean, std, groups = encode(frozen, pixels, frozen.layers, 2)
        np.testing.assert_allclose(rows["mean"], mean.numpy(), atol=1e-5)  # another batch size, other last bits
        np.testing.assert_allclose(rows["std"], std.numpy(), atol=1e-5)
        for group in ("G1", "G4"):
            np.testing.assert_allclose(rows[group], groups[group].numpy(), atol=2e-3, rtol=2e-3)
    mixed = split.take(index, ("G4",), np.array([1, 0, 1]))["G4"]
    both = [split.take(index, ("G4",), view)["G4"] for view in (0, 1)]
    np.testing.assert_array_equal(mixed, np.stack([both[1][0], both[0][1], both[1][2]]))
    ids = np.concatenate([s.take(np.arange(s.size), ("image_id",))["image_id"] for s in splits.values()])
    assert sorted(ids) == list(range(30))


def test_eight_bits_are_read_as_float16(flipped: dict[str, Path]) -> None:
    exact, eight = (cache.open_cache(flipped[dtype], ())[1]["train"] for dtype in ("float16", "int8"))
    assert eight.header.dtype == "int8" and eight.header.groups == exact.header.groups
    index = np.arange(24)
    for view in (0, 1):
        a, b = (split.take(index, ("mean", "std", "label", "G1", "G3"), view) for split in (exact, eight))
        for name in ("mean", "std", "label"):
            np.testing.assert_array_equal(a[name], b[name])
        for group in ("G1", "G3"):
            assert b[group].dtype == np.float16
            step = np.abs(a[group].astype(np.float64)).max((-2, -1), keepdims=True) / 127
            assert (np.abs(a[group].astype(np.float64) - b[group]) <= 0.6 * step).all()


def test_statistics_are_those_of_what_is_read_in_both_views(flipped: dict[str, Path]) -> None:
    """In float64 from the rows, over shards."""
    for folder in flipped.values():
        _, splits = cache.open_cache(folder, ())
        both = [splits["train"].take(np.arange(24), ("G2", "G4"), view) for view in (0, 1)]
        found = splits["train"].statistics()
        for group in ("G2", "G4"):
            f = np.concatenate([rows[group] for rows in both]).astype(np.float64)
            np.testing.assert_allclose(found[f"{group}_mean"], f.mean((0, 3, 4)), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found[f"{group}_std"], f.std((0, 3, 4)), rtol=1e-4, atol=1e-6)


def test_training_draws_a_view_and_probes_do_not(flipped: dict[str, Path]) -> None:
    header, splits = cache.open_cache(flipped["float16"], ("G3",))
    batches = StepBatches(split=splits["train"], groups=("G3",), batch=24, seed=1, label_dropout=0.0)
    samples = np.arange(24, 48)
    drawn = rng.draw(1, "train", samples, header.latent_shape)
    view = (drawn.flip_u < 0.5).astype(int)
    assert 4 < view.sum() < 20
    index = permutation.image_of(samples, 24, 1)
    np.testing.assert_array_equal(batches[1]["G3"].numpy(), splits["train"].take(index, ("G3",), view)["G3"])
    _, probed = next(heldout_batches(splits["heldout"], 6, 0, "heldout", 0.0, 1.0, ("G3",)))
    np.testing.assert_array_equal(probed["G3"].numpy(), splits["heldout"].take(order(splits["heldout"].size)[:6], ("G3",), 0)["G3"])


def test_datasets_reads_the_shards(flipped: dict[str, Path]) -> None:
    import datasets

    back = datasets.load_from_disk(str(flipped["int8"]))
    assert back["train"].num_rows == 48 and back["heldout"].num_rows == 12
    assert back["train"][:4]["view"] == [0, 1, 0, 1]
    split = cache.open_cache(flipped["int8"], ())[1]["train"]
    row = back["train"][2 * 15 + 1]
    f = np.array(row["G3"], np.float32).reshape(split.header.groups["G3"]) * np.array(row["G3_scale"], np.float16).reshape(4, 16, 1, 1)
    np.testing.assert_array_equal(f.astype(np.float16), split.take(np.array([15]), ("G3",), 1)["G3"][0])


def test_a_teacher_s_tokens_are_kept_too(pictures: Path, tmp_path: Path) -> None:
    prepare(data=pictures, vae="demo", teacher="demo", features="none", resolution=64, patch=1, out=tmp_path / "cache", dtype="int8", heldout=20)
    header, splits = cache.open_cache(tmp_path / "cache", ("teacher",))
    assert header.groups == {"teacher": (1, 128, 8, 8)} and header.teacher == "demo"
    assert splits["heldout"].take(np.arange(2), ("teacher",))["teacher"].shape == (2, 1, 128, 8, 8)


def test_bad_input_is_named(pictures: Path, vae_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fails(match: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=match):
            prepare(**{"data": pictures, "vae": vae_folder, "out": out} | changes)
        assert not out.exists() and not list(tmp_path.glob(".out*"))

    fails("no such folder", data=tmp_path / "nope")
    fails("no images in sub-folders", data=vae_folder)
    fails("multiple of 8", resolution=36)
    fails("--heldout 30", heldout=30)
    fails("--teacher '': names nothing", teacher="")
    fails("--latent-scale '': names nothing", latent_scale="")
    for named in ("G9", "G3,G3", "G3, G4", ""):
        fails(f"--features '{named}': name groups of G1, G2, G3, G4, each once", features=named)
    fails("--resolution 65536: must be at least 1 and at most 4096", resolution=65536)
    fails("--data is empty", data="")
    fails("choose from adaptive, bilinear", resampling="nope")
    fails("--dtype 'int4' does not exist; choose from float16, int8", dtype="int4")
    fails("cannot be loaded", vae=tmp_path)
    fails(r"eel/0\.png: its label is 2; with 2 classes it must be 0 to 1", num_classes=2)
    for flag, value in (("batch", 0), ("shard", 0), ("workers", -1), ("num_classes", 0), ("patch", 0)):
        fails(f"--{flag.replace('_', '-')} {value}: must be at least", **{flag: value})
    with pytest.raises(ValueError, match="exists; name a new folder"):
        prepare(data=pictures, vae=vae_folder, out=tmp_path)


@pytest.fixture
def broken(pictures: Path, tmp_path: Path) -> Path:
    """The pictures, one of them cut short and one of them nonsense."""
    folder = tmp_path / "broken"
    shutil.copytree(pictures, folder)
    (folder / "dog" / "4.png").write_bytes((pictures / "dog" / "4.png").read_bytes()[:2000])
    (folder / "eel" / "7.png").write_bytes(b"\x89PNG nonsense")
    return folder


def test_a_corrupt_image_is_named_or_left_out(broken: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The command is first run without --skip-bad, as a user would, and goes on with it."""
    words = {"data": broken, "vae": vae_folder, "out": tmp_path / "out", "shard": 3, "batch": 2}
    with pytest.raises(ValueError, match=r"(dog/4|eel/7)\.png: not a readable image \(.*\); --skip-bad leaves such images out"):
        prepare(**words)
    assert not (tmp_path / "out").exists()
    done = set((tmp_path / ".out.preparing" / "notes").iterdir())
    assert done, "what was finished before stays"
    prepare("--skip-bad", **words)
    said = capsys.readouterr()
    assert "28 images of 3 classes" in said.out and ", 2 left out; " in said.out
    for name in ("dog/4.png", "eel/7.png"):
        assert f"left out: {broken / name}: not a readable image" in said.err
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert sorted(line.partition(":")[0] for line in record["skipped"]) == [str(broken / name) for name in ("dog/4.png", "eel/7.png")]
    header, splits = cache.open_cache(tmp_path / "out", ())
    ids = np.concatenate([s.take(np.arange(s.size), ("image_id",))["image_id"] for s in splits.values()])
    assert sorted(ids) == [i for i in range(30) if i not in (14, 27)] and sum(header.sizes.values()) == 28
    for image in (broken / "cat").iterdir():
        image.write_bytes(b"")
    with pytest.raises(ValueError, match="no readable images for split"):
        prepare("--skip-bad", data=broken / "cat" / "..", vae=vae_folder, out=tmp_path / "none", heldout=1, labels=_one_label(broken))


def _one_label(folder: Path) -> Path:
    """A labels file of two images that cannot be read."""
    path = folder / "two.csv"
    path.write_text("file,label\ncat/0.png,0\ncat/1.png,0\n")
    return path


def test_features_that_float16_cannot_hold_are_named(pictures: Path, vae_folder: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        vae.encoder.mid_block.resnets[1].conv2.bias.fill_(1e5)
    vae.save_pretrained(tmp_path / "vae")
    for dtype in ("float16", "int8"):
        with pytest.raises(ValueError, match=r"features of G4 exceed float16 in images .* leave G4 out"):
            prepare(data=pictures, vae=tmp_path / "vae", out=tmp_path / dtype, dtype=dtype)


def test_a_cache_that_is_damaged_or_made_otherwise_is_named(flipped: dict[str, Path], tmp_path: Path) -> None:
    from gsnr.train.command import main as train

    copy = tmp_path / "copy"
    shutil.copytree(flipped["int8"], copy)
    run = ("--preset", "ahpa-b2", "--data.workers", 0, "--precision", "no", "--steps", 1, "--out", tmp_path / "run", "--data.path", copy)
    with pytest.raises(ValueError, match=r"was made with VAE .*, not with --data.vae demo"):
        call(train, *run, "--data.vae", "demo")
    with pytest.raises(ValueError, match=r"shape \(4, 4, 4\) \(32 pixels, 2 tokens a side\); the model wants 4x32\^2 \(256"):
        call(train, *run, "--model.num-classes", 3)
    shard = copy / "train" / "data-00002-of-00004.arrow"
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ValueError, match=r"train/data-00002-of-00004\.arrow: missing; put the file back"):
        cache.open_cache(copy, ())
    for size in (0, 100, len(whole) // 2, len(whole) - 8):
        shard.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"data-00002-of-00004\.arrow: damaged or incomplete \("):
            cache.open_cache(copy, ())
    shard.write_bytes((copy / "train" / "data-00003-of-00004.arrow").read_bytes())
    with pytest.raises(ValueError, match=r"train: holds .* rows, not 48"):
        cache.open_cache(copy, ())
    shard.write_bytes(whole)
    cache.open_cache(copy, ())
    header = json.loads((copy / cache.HEADER).read_text())
    (copy / cache.HEADER).write_text(json.dumps(header | {"dtype": "int4"}))
    with pytest.raises(ValueError, match="features of dtype 'int4'; this version reads float16, int8"):
        cache.open_cache(copy, ())
    (copy / "train" / "state.json").write_text("{}")
    (copy / cache.HEADER).write_text(json.dumps(header, indent=2) + "\n")
    with pytest.raises(ValueError, match=r"state\.json: damaged"):
        cache.open_cache(copy, ())
