"""Captions: COCO's annotations and text files into a cache, the caption of a sample, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from gsnr.train import text
from gsnr.train.config import TEXT
from gsnr.train.data import cache, permutation, rng
from gsnr.train.data.batches import StepBatches, flattened, loader
from gsnr.train.data.controls import controlled
from gsnr.train.data.heldout import heldout_batches
from gsnr.train.prepare import shards
from gsnr.train.prepare.command import main
from gsnr.train.prepare.images import lanczos_crop, preprocessing_sha
from gsnr.train.prepare.images import loader as loader_of_pictures
from gsnr.train.prepare.sources import Files
from gsnr.train.verify import main as verify
from tests.conftest import call
from tests.train.text_files import POSITIONS, WIDTH, text_encoder

IMAGES = 9
CAPTIONS = [[f"a {colour} {digit}" for digit in ("seven", "zero", "café")[: 1 + (k + 1) % 3]] for k, colour in enumerate(["red", "blue", "grey"] * 3)]
IDS = [100 - 7 * k for k in range(IMAGES)]  # not in the order of the file


def annotations(names: list[str], captions: list[list[str]], ids: list[int] = IDS) -> dict[str, Any]:
    images = [{"id": i, "file_name": name, "height": 20} for i, name in zip(ids, names, strict=True)]
    notes = [{"image_id": i, "id": 9, "caption": caption} for i, some in zip(ids, captions, strict=True) for caption in some]
    return {"info": {}, "images": images, "annotations": notes}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as COCO has it, and the same captions in text files."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "train2014").mkdir()
    for k, i in enumerate(IDS):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / "train2014" / f"é{i:03d}.png")
        (folder / "train2014" / f"é{i:03d}.txt").write_text("\n".join([*CAPTIONS[k], "  ", ""]), encoding="utf-8")
    names = [f"é{i:03d}.png" for i in IDS]
    (folder / "captions.json").write_text(json.dumps(annotations(names, CAPTIONS), ensure_ascii=False), encoding="utf-8")
    return folder


def prepare(pictures: Path, encoder: Path, out: Path, *words: object, **changes: object) -> None:
    options = {"data": pictures / "train2014", "captions": pictures / "captions.json", "text-encoder": encoder, "vae": "demo", "out": out}
    options |= {"resolution": 16, "patch": 1, "heldout": 3, "features": "G4", "shard": 2} | {key.replace("_", "-"): v for key, v in changes.items()}
    assert call(main, *words, *(w for key, value in options.items() if value is not None for w in (f"--{key}", value))) == 0


@pytest.fixture(scope="module")
def made(pictures: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "cache"
    prepare(pictures, encoder, out)
    return out


def by_id(split: cache.Split) -> list[int]:
    """The places in CAPTIONS of a split's images: the source's order is that of the ids, which is the other way round."""
    return (IMAGES - 1 - split.take(np.arange(split.size), ("image_id",))["image_id"]).tolist()


def test_a_cache_holds_the_captions_and_what_the_encoder_says_of_them(made: Path, encoder: Path) -> None:
    header, splits = cache.open_cache(made, ("G4", TEXT))
    frozen = text.load(str(encoder))
    assert header.text_shape == (POSITIONS, WIDTH) and header.captions == 3 and header.num_classes == 1 and header.truncated_captions == 0
    assert header.text_encoder == str(encoder) and header.text_sha == frozen.sha
    assert header.bytes_an_image()[TEXT] == 3 * POSITIONS * WIDTH * 2
    for split in (*splits.values(), pickle.loads(pickle.dumps(splits["train"]))):
        index = np.arange(split.size)
        places = by_id(split)
        assert split.captions(index) == [tuple(CAPTIONS[k]) for k in places]
        assert not split.take(index, ("label",))["label"].any()
        for choice in range(3):
            u = np.array([(min(choice, len(CAPTIONS[k]) - 1) + 0.5) / len(CAPTIONS[k]) for k in places])
            expected = frozen.encode([CAPTIONS[k][min(choice, len(CAPTIONS[k]) - 1)] for k in places]).numpy()
            found = split.texts(index, u)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-3)  # float16
        rows = split.take(index, (TEXT, cache.COUNT))
        for row, n in zip(rows[TEXT], rows[cache.COUNT], strict=True):
            np.testing.assert_array_equal(row, row[np.arange(3) % n])
        np.testing.assert_allclose(split.null_text(), frozen.encode([""])[0].numpy(), atol=1e-6)
        assert split.null_text().dtype == np.float32 and split.null_text().shape == (POSITIONS, WIDTH)
    back = datasets.load_from_disk(str(made))["train"]
    assert back[0][cache.CAPTION] == list(splits["train"].captions(np.array([0]))[0]) and len(back[0][TEXT]) == 3 * POSITIONS * WIDTH


def test_text_files_beside_pictures_are_the_same_captions(made: Path, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    prepare(pictures, encoder, tmp_path / "cache", captions="txt", data=pictures)
    _, splits = cache.open_cache(tmp_path / "cache", (TEXT,))
    _, others = cache.open_cache(made, (TEXT,))
    for name, split in splits.items():
        assert split.captions(np.arange(split.size)) == others[name].captions(np.arange(split.size))


def test_the_caption_of_a_sample_is_its_own(made: Path) -> None:
    """Whatever the size of the batch and the number of processes and workers; all else is as without text."""
    header, splits = cache.open_cache(made, (TEXT,))
    split = splits["train"]
    common = {"split": split, "groups": ("G4",), "seed": 3, "label_dropout": 0.5}
    whole = StepBatches(batch=12, always=(TEXT,), **common)
    batch = whole[1]
    assert batch[TEXT].shape == (12, POSITIONS, WIDTH) and batch[TEXT].dtype.is_floating_point
    parts = [StepBatches(batch=12, always=(TEXT,), rank=rank, world=3, **common)[1] for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([part[TEXT] for part in parts]), batch[TEXT])
    halves = [StepBatches(batch=6, always=(TEXT,), **common)[step] for step in (2, 3)]
    np.testing.assert_array_equal(np.concatenate([half[TEXT] for half in halves]), batch[TEXT])
    (worked,) = loader(whole, 1, 2, workers=1)
    np.testing.assert_array_equal(worked[TEXT], batch[TEXT])
    plain = StepBatches(batch=12, **common)[1]
    assert plain.keys() == batch.keys() - {TEXT}
    for key, x in plain.items():
        np.testing.assert_array_equal(x, batch[key])
    drawn = rng.draw(3, "train", np.arange(12, 24), header.latent_shape, captions=True)
    index = permutation.image_of(np.arange(12, 24), split.size, 3)
    np.testing.assert_array_equal(batch[TEXT], split.texts(index, drawn.caption_u))
    assert len({int(u * 3) for u in drawn.caption_u}) == 3
    views = StepBatches(batch=12, always=(TEXT,), views=2, **common)[1]
    assert views[TEXT].shape == (6, POSITIONS, WIDTH)
    np.testing.assert_array_equal(flattened(views)[TEXT], views[TEXT].repeat_interleave(2, 0))


def test_captions_are_drawn_from_numbers_of_their_own() -> None:
    """By hand: word 2 of the sample's generator; the golden values are those of the draws before there were captions (tests/train/test_data.py)."""
    samples = np.array([5, 2**33 + 1])
    drawn = rng.draw(3, "fit", samples, (4, 2, 2), captions=True)
    for k, sample in enumerate(samples):
        key, counter = np.array([3, 2], dtype=np.uint64), np.array([0, 0, 2, sample], dtype=np.uint64)
        assert drawn.caption_u[k] == np.random.Generator(np.random.Philox(key=key, counter=counter)).random()
    plain = rng.draw(3, "fit", samples, (4, 2, 2))
    assert plain.caption_u.shape == (0,)
    for name in ("u", "drop_u", "offset_u", "flip_u", "posterior", "noise", "extra"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(drawn, name))


def test_heldout_samples_and_controls_keep_their_captions(made: Path) -> None:
    header, splits = cache.open_cache(made, ("G4", TEXT))
    shuffled = controlled(splits, "shuffled", 0)
    for (index, own), (_, other) in zip(
        *(heldout_batches(s["heldout"], 3, 0, "heldout", 0.0, 1.0, ("G4", TEXT), 2) for s in (splits, shuffled)), strict=True
    ):
        drawn = rng.draw(0, "heldout", index, header.latent_shape, captions=True)
        np.testing.assert_array_equal(own[TEXT], splits["heldout"].texts(index, drawn.caption_u))
        np.testing.assert_array_equal(own[TEXT], other[TEXT])
    assert shuffled["train"].captions(np.arange(2)) == splits["train"].captions(np.arange(2))
    np.testing.assert_array_equal(shuffled["train"].null_text(), splits["train"].null_text())
    repeated = [batch for _, batch in heldout_batches(splits["heldout"], 3, 0, "heldout", 0.0, 1.0, (TEXT,), repeats=8)]
    assert len(np.unique(repeated[0][TEXT].numpy().reshape(24, -1), axis=0)) > 3, "an image's repeats draw captions of their own"


def test_damage_is_named(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call(verify, made) == 0
    copy = shutil.copytree(made, tmp_path / "copy")
    shard = sorted((copy / "train").glob("*.arrow"))[0]
    data = bytearray(shard.read_bytes())
    at = data.index("café".encode() if "café".encode() in data else b"a red")
    data[at] ^= 1
    shard.write_bytes(data)
    split = cache.open_cache(copy, (TEXT,))[1]["train"]
    with pytest.raises(ValueError, match=r"column 'caption': damaged"):
        split.captions(np.arange(split.size))
    split.texts(np.arange(split.size), np.zeros(split.size))
    (copy / cache.NULL_TEXT).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"text\.safetensors: damaged"):
        cache.open_cache(copy, ())
    with pytest.raises(ValueError, match=r"text\.safetensors: missing or damaged"):
        split.null_text()
    with pytest.raises(ValueError, match=r"2 of .* files are not as they were written"):
        call(verify, copy)
    assert shard.name in capsys.readouterr().out
    header = json.loads((copy / cache.HEADER).read_text())
    (copy / cache.HEADER).write_text(json.dumps(header | {"captions": 0}))
    with pytest.raises(ValueError, match=r"gsnr_cache\.json: damaged \(the shape of its text\)"):
        cache.open_cache(copy, ())


def test_a_cache_without_captions_says_how_to_make_one(pictures: Path, tmp_path: Path) -> None:
    prepare(pictures, pictures, tmp_path / "plain", data=pictures, captions=None, text_encoder=None)
    again = r"holds no captions; prepare it again with --captions FILE --text-encoder openai/clip-vit-large-patch14"
    with pytest.raises(ValueError, match=again):
        cache.open_cache(tmp_path / "plain", (TEXT,))
    header, splits = cache.open_cache(tmp_path / "plain", ())
    assert not set(cache.OF_TEXT) & set(json.loads((tmp_path / "plain" / cache.HEADER).read_text()))
    assert header == cache.header_from(header.written()) and header.columns == ("G4",)
    for asked in (
        lambda: splits["train"].captions(np.arange(1)),
        splits["train"].null_text,
        lambda: splits["train"].texts(np.arange(1), np.zeros(1)),
    ):
        with pytest.raises(ValueError, match=again):
            asked()


def test_what_is_missing_is_named_and_counted(pictures: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shutil.copytree(pictures, tmp_path / "coco")
    stored = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    stored["annotations"] = [note | {"caption": " " if note["image_id"] == IDS[1] else note["caption"]} for note in stored["annotations"]]
    stored["annotations"] = [note for note in stored["annotations"] if note["image_id"] != IDS[4]]
    (folder / "captions.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"2 of 9 images have no caption, the first é072\.png; --skip-uncaptioned leaves them out"):
        prepare(folder, encoder, tmp_path / "cache")
    (folder / "train2014" / "é100.png").unlink()
    (folder / "train2014" / "é044.png").unlink()
    with pytest.raises(ValueError, match=r"2 of 7 listed pictures do not exist, the first é044\.png"):
        prepare(folder, encoder, tmp_path / "cache", "--skip-uncaptioned")
    prepare(folder, encoder, tmp_path / "cache", "--skip-uncaptioned", "--skip-bad")
    said = capsys.readouterr()
    assert "2 images without a caption are left out, the first é072.png" in said.out
    assert "5 images with 1 to 3 captions" in said.out and "2 left out" in said.out and said.err.count("left out: ") == 2
    assert json.loads((tmp_path / "cache" / "prepare.json").read_text())["uncaptioned"] == ["é072.png", "é093.png"]
    (folder / "train2014" / "é051.txt").unlink()
    with pytest.raises(ValueError, match=r"--captions txt: .*: 1 of 7 images have no caption, the first train2014/é051\.png"):
        prepare(folder, encoder, tmp_path / "other", data=folder, captions="txt")


def test_captions_that_are_too_long_are_truncated_and_counted(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    short = text_encoder(tmp_path / "short", positions=4)
    prepare(pictures, short, tmp_path / "cache")
    assert "18 of 18 captions are truncated to 4 positions, the first 'a grey seven'" in capsys.readouterr().out
    assert cache.read_header(tmp_path / "cache").truncated_captions == 18


def test_an_interrupted_command_goes_on_to_the_same_bytes(
    made: Path, pictures: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = shards.write_rows, iter(range(9))

    def stop(*arguments: Any) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        patch.setattr(shards, "write_rows", stop)
        prepare(pictures, encoder, tmp_path / "cache")
    prepare(pictures, encoder, tmp_path / "cache")
    names = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "cache") for path in (tmp_path / "cache").rglob("*") if path.is_file())
    for name in names:
        assert (made / name).read_bytes() == (tmp_path / "cache" / name).read_bytes(), name


def test_coco_may_be_cropped_as_u_vit_crops_it(pictures: Path) -> None:
    """Its lines, written from the description: the centre square by numpy's indices, then Pillow's Lanczos."""
    for size in ((90, 61), (60, 91), (64, 64)):
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        short = min(size)
        top, left = ((length - short) // 2 for length in size)
        square = Image.fromarray(np.ascontiguousarray(pixels[top : top + short, left : left + short]))
        np.testing.assert_array_equal(lanczos_crop(Image.fromarray(pixels), 16), np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS)))
    names = ["é100.png", "é093.png"]
    source = Files(root=pictures / "train2014", names=names, labels=np.zeros(2, np.int64))
    (read,) = loader_of_pictures(source, 16, [np.arange(2)], 0, "lanczos")
    np.testing.assert_array_equal(read.images, [lanczos_crop(source.image(k), 16) for k in range(2)])
    assert preprocessing_sha("lanczos") != preprocessing_sha()


def test_other_captions_or_encoders_are_another_cache(made: Path, pictures: Path, encoder: Path, tmp_path: Path) -> None:
    prepare(pictures, encoder, made)
    with pytest.raises(ValueError, match=r"was prepared with other options: --text-encoder \(hash\) was"):
        prepare(pictures, text_encoder(tmp_path / "other", seed=5), made)
    folder = shutil.copytree(pictures, tmp_path / "coco")
    (folder / "captions.json").write_text((folder / "captions.json").read_text().replace("a grey seven", "a grey zero"))
    with pytest.raises(ValueError, match=r"was prepared with other options: --captions \(hash\) was"):
        prepare(folder, encoder, made)
    with pytest.raises(ValueError, match=r"was prepared with other options: --captions \(hash\) was '[0-9a-f]+', now ''"):
        prepare(pictures, encoder, made, data=pictures, captions=None, text_encoder=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder": None}, "--captions: needs --text-encoder ID beside it"),
        ({"captions": None}, "--text-encoder: needs --captions FILE beside it"),
        ({"labels": "x.csv"}, "--labels: is of labelled data; with --captions every label is 0"),
        ({"num_classes": 3}, "--num-classes: is of labelled data"),
        ({"captions": "nowhere.json"}, r"--captions nowhere\.json: no such file"),
        ({"data": "nowhere"}, "--data nowhere: no such folder; with --captions it is the folder of the pictures"),
        ({"text_encoder": "nowhere"}, "text encoder 'nowhere' cannot be loaded"),
    ],
)
def test_options_that_do_not_go_together(pictures: Path, encoder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(pictures, encoder, tmp_path / "cache", **changes)
    with pytest.raises(ValueError, match="--crop 'box' does not exist; choose from adm, lanczos"):
        prepare(pictures, encoder, tmp_path / "cache", crop="box")
    with pytest.raises(ValueError, match="--flip: a mirrored image has other captions"):
        prepare(pictures, encoder, tmp_path / "cache", "--flip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "it has no list 'images'"),
        ({"images": [5]}, "entry 0 of 'images' has no 'id', or one that is no number"),
        ({"annotations": [{"image_id": 1, "caption": "a"}]}, "1 captions are of images that it does not list, the first of image 1"),
        ({"annotations": [{"image_id": 100, "caption": 3}]}, "entry 0 of 'annotations' has no 'caption', or one that is no text"),
        ({"images": [{"id": 1, "file_name": "../x.png"}]}, r"'\.\./x\.png' is not the name of a file below the folder"),
        ({"images": [{"id": k, "file_name": "x.png"} for k in (1, 2)]}, r"x\.png is listed twice"),
        ({"images": [{"id": 1, "file_name": name} for name in ("x.png", "y.png")]}, r"id 1 is that of two images, x\.png and y\.png"),
        ({"images": [], "annotations": []}, "lists no images"),
    ],
)
def test_damaged_annotations_are_named(pictures: Path, encoder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "notes.json"
    path.write_text(json.dumps(json.loads((pictures / "captions.json").read_text()) | change))
    with pytest.raises(ValueError, match=rf"--captions {path}: .*{message}") as raised:
        prepare(pictures, encoder, tmp_path / "cache", captions=path)
    assert "\n" not in str(raised.value)
