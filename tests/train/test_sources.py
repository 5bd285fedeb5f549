"""Layouts of --data: which pictures, which labels, in which order; what is wrong with others is named."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from gsnr.train.prepare import images
from gsnr.train.prepare.sources import open_source


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 33, 3), dtype=np.uint8))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Five pictures in sub-folders that are no classes, as EDM2 and REPA number them."""
    folder = tmp_path / "flat"
    (folder / "00000").mkdir(parents=True)
    for i in range(5):
        picture(i).save(folder / "00000" / f"img{i:08d}.png")
    return folder


def table(rows: int = 4) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    content = {"image": [picture(i) for i in range(rows)], "label": [i % 3 for i in range(rows)]}
    return datasets.Dataset.from_dict(content, features=features)


def test_a_labels_file_says_which_images_there_are(flat: Path) -> None:
    pairs = [[f"00000/img{i:08d}.png", label] for i, label in ((3, 7), (0, 2), (1, 0), (4, 1))]  # not sorted, and one image is not listed
    (flat / "dataset.json").write_text(json.dumps({"labels": pairs}))
    source, classes = open_source(str(flat))
    assert classes == 8 and source.labels.tolist() == [2, 0, 7, 1]
    assert [Path(source.name(i)).name for i in range(4)] == [f"img{i:08d}.png" for i in (0, 1, 3, 4)]
    np.testing.assert_array_equal(np.asarray(source.image(2)), np.asarray(picture(3)))
    (flat / "dataset.json").rename(flat.parent / "labels.json")
    again, _ = open_source(str(flat), labels=flat.parent / "labels.json", num_classes=1000)
    assert again.sha == source.sha

    (flat / "labels.csv").write_text("label,file\n" + "".join(f"{label},{name}\n" for name, label in pairs))
    from_csv, _ = open_source(str(flat))
    assert from_csv.sha == source.sha
    (flat / "labels.csv").write_text("label,file\n3,00000/img00000000.png\n")
    assert open_source(str(flat))[0].sha != source.sha
    (flat / "labels.csv").write_text("label,file\n3,00000/img00000000.png\n1,00000/gone.png\n1,gone/img.png\n")
    with pytest.raises(ValueError, match=r"2 of 3 listed pictures do not exist, the first 00000/gone.png"):
        open_source(str(flat), all_there=True)
    with pytest.raises(ValueError, match="--split val: of a Hugging Face data set"):
        open_source(str(flat), split="val")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"labels": null}', "it holds no labels"),
        ('{"labels": [["a.png", 1.5]]}', "a.png: the label 1.5 is not a class number"),
        ('{"labels": [["a.png", [0, 1]]]}', "a.png: the label .* is not a class number"),
        ('{"labels": []}', "lists no images"),
        ('{"labels": [["a.png", -1]]}', r"flat/a\.png: its label is -1; with 1 classes it must be 0 to 0"),
        ("{", "not a labels file"),
        ("[]", "not a labels file"),
    ],
)
def test_labels_that_are_none_are_named(flat: Path, content: str, match: str) -> None:
    (flat / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=match):
        open_source(str(flat))


def test_labels_in_csv_that_are_none_are_named(flat: Path) -> None:
    (flat / "labels.csv").write_text("name,class\na.png,1\n")
    with pytest.raises(ValueError, match="columns file and label, not name, class"):
        open_source(str(flat))
    (flat / "labels.csv").write_text("file,label\na.png,ant\n")
    with pytest.raises(ValueError, match=r"a\.png: the label 'ant' is not a class number"):
        open_source(str(flat))
    with pytest.raises(ValueError, match=r"nowhere\.csv: not a labels file"):
        open_source(str(flat), labels=Path("nowhere.csv"))


def test_class_folders(flat: Path) -> None:
    shutil.copytree(flat / "00000", flat / "bee")
    (flat / "empty").mkdir()
    (flat / ".thumbnails").mkdir()
    (flat / "bee" / "._img00000000.png").write_bytes(b"what macOS leaves behind")
    source, classes = open_source(str(flat))
    assert classes == 3 and source.labels.tolist() == [0] * 5 + [1] * 5, "a folder without images is a class too"
    assert open_source(str(flat), num_classes=1000)[1] == 1000
    with pytest.raises(ValueError, match=r"bee/img00000000\.png: its label is 1; with 1 classes it must be 0 to 0"):
        open_source(str(flat), num_classes=1)
    shutil.rmtree(flat / "empty")
    (flat / "00000").rename(flat / "train")
    (flat / "bee").rename(flat / "val")
    with pytest.raises(ValueError, match=r"sub-folders are splits, not classes; name one of them, such as .*flat/train"):
        open_source(str(flat))


def test_hugging_face_folders(tmp_path: Path) -> None:
    made = table()
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "validation": made.select([1, 2])}).save_to_disk(str(tmp_path / "two"))
    source, classes = open_source(str(tmp_path / "one"))
    assert classes == 3 and source.labels.tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(source)).image(3)), np.asarray(picture(3)))
    assert open_source(str(tmp_path / "two"))[0].sha == source.sha
    validation, _ = open_source(str(tmp_path / "two"), split="validation")
    assert validation.labels.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"--split test: .* has train, validation"):
        open_source(str(tmp_path / "two"), split="test")
    with pytest.raises(ValueError, match=r"one, image 2: its label is 2; with 2 classes it must be 0 to 1"):
        open_source(str(tmp_path / "one"), num_classes=2)
    made.rename_column("label", "class").save_to_disk(str(tmp_path / "three"))
    with pytest.raises(ValueError, match="has no column 'label', but image, class"):
        open_source(str(tmp_path / "three"))
    made.cast_column("label", datasets.Value("string")).save_to_disk(str(tmp_path / "four"))
    with pytest.raises(ValueError, match=r"its column label holds .*, not class numbers"):
        open_source(str(tmp_path / "four"))
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="damaged or incomplete"):
        open_source(str(tmp_path / "one"))


def test_a_folder_that_load_dataset_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine" / "data").mkdir(parents=True)
    table().to_parquet(str(tmp_path / "mine" / "data" / "train-00000-of-00001.parquet"))
    source, classes = open_source(str(tmp_path / "mine"))
    assert classes == 3 and source.labels.tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(np.asarray(source.image(1)), np.asarray(picture(1)))
    with pytest.raises(ValueError, match="--data nobody/nothing: no such folder, nor a data set that `datasets` can load"):
        open_source("nobody/nothing")


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_come_in_order_and_what_cannot_be_read_is_named(flat: Path, workers: int) -> None:
    (flat / "00000" / "img00000001.png").write_bytes((flat / "00000" / "img00000001.png").read_bytes()[:300])
    (flat / "00000" / "img00000003.png").unlink()
    (flat / "dataset.json").write_text(json.dumps({"labels": [[f"00000/img{i:08d}.png", 0] for i in range(5)]}))
    source, _ = open_source(str(flat))
    first, second = images.loader(source, 32, [np.array([4, 1, 0]), np.array([3])], workers)
    assert first.numbers.tolist() == [4, 0]
    np.testing.assert_array_equal(first.images, np.stack([images.centre_crop(picture(i), 32) for i in (4, 0)]))
    assert len(first.bad) == 1 and "img00000001.png: not a readable image (image file is truncated" in first.bad[0]
    assert len(second.numbers) == 0 and "img00000003.png: not a readable image ([Errno 2]" in second.bad[0]


def test_the_hash_of_the_preprocessing_is_that_of_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    images.preprocessing_sha.cache_clear()
    before = images.preprocessing_sha()
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, resample, box=None: original(self, size, Image.Resampling.NEAREST, box))
    images.preprocessing_sha.cache_clear()
    assert images.preprocessing_sha() != before
    images.preprocessing_sha.cache_clear()


def test_jpegs_of_other_modes(tmp_path: Path) -> None:
    """CMYK and palette pictures of ImageNet become RGB."""
    for mode in ("L", "CMYK", "RGB"):
        data = io.BytesIO()
        picture(0).convert(mode).save(data, format="JPEG")
        assert images.centre_crop(Image.open(data), 32).shape == (32, 32, 3)
    assert images.centre_crop(picture(0).convert("P"), 32).shape == (32, 32, 3)
