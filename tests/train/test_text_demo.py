"""The demo with captions: its images, words and splits; its text encoder; what names attributes; and metrics of pairs against float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from gsnr import plugins
from gsnr.intervals import wilson
from gsnr.train import evaluate, presets
from gsnr.train.config import resolve
from gsnr.train.data.heldout import partners
from gsnr.train.demo import attributes, captioned, captions, fit_attributes, text_encoder
from gsnr.train.demo import images as demo
from gsnr.train.demo.captions import ATTRIBUTES, VALUES, WITHHELD, Attributes
from gsnr.train.evaluation.compare import Asked, compare
from gsnr.train.extractors._clip_pairs import ClipPairs, middle
from gsnr.train.metrics import attribute_accuracy
from gsnr.train.opening import open_data
from gsnr.train.priors.features import to_pixels
from gsnr.train.weights_hash import weights_hash
from tests.conftest import call

SEVEN = Attributes(digit="seven", size="small", colour="red", place="top left", background="black")
ENCODER = "27731f78bbfb6ad6dcdaea7da477f92fa5180514cfa104a58a4153e155c24c65"


@pytest.mark.parametrize("split", demo.SPLITS)
def test_images_and_captions_are_functions_of_split_seed_and_number(split: str) -> None:
    few, more = captioned.images(split, 5), captioned.images(split, 9)
    assert few.images.dtype == np.uint8 and few.images.shape == (5, 64, 64, 3)
    np.testing.assert_array_equal(few.images, more.images[:5])
    assert few.attributes == more.attributes[:5] and few.captions == more.captions[:5]
    assert not np.array_equal(few.images, captioned.images(split, 5, seed=1).images)


def test_what_is_withheld_is_in_no_train_image_and_in_every_other_held_out_one() -> None:
    train, heldout = captioned.images("train", 400), captioned.images("heldout", 64)
    assert not captions.withheld(train.numbers).any()
    seen = {(shown.digit, shown.colour) for shown in train.attributes}
    assert seen == {(d, c) for d in VALUES["digit"] for c in VALUES["colour"] if WITHHELD[d] != c}
    assert captions.withheld(heldout.numbers).tolist() == [bool(k % 2) for k in range(64)]
    assert [shown.withheld for shown in heldout.attributes] == captions.withheld(heldout.numbers).tolist()
    labels = demo.scans("heldout")[1][:64]
    assert heldout.numbers[:, 0].tolist() == labels.tolist(), "the digit is the scan's"


def test_the_vocabulary_is_closed_and_captions_are_read_back() -> None:
    every = [
        Attributes(digit=d, size="large", colour=c, place=p, background="grey")
        for d in VALUES["digit"]
        for c in VALUES["colour"]
        for p in VALUES["place"]
    ]
    words = set(captions.vocabulary())
    for shown in every:
        assert len(set(shown.captions)) == 3
        assert {word for caption in shown.captions for word in caption.split()} <= words
        assert {captions.read(caption) for caption in shown.captions} == {shown}
    assert SEVEN.captions[0] == "a small red seven at the top left on black"


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a small red seven at the top left on mars", "'mars' is no word"),
        ("a red seven at the top left on black", "names 0 of the demo's sizes"),
        ("a small red blue seven at the top left on black", "names 2 of the demo's colours"),
    ],
)
def test_a_caption_that_cannot_be_read_is_quoted(caption: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        captions.read(caption)
    assert repr(caption) in str(error.value) and "\n" not in str(error.value)


def test_pixels_are_what_the_caption_says() -> None:
    """Against the pixels themselves: where the image differs from its border's level, and in which colour."""
    for pixels, shown in zip(*(lambda made: (made.images, made.attributes))(captioned.images("heldout", 40)), strict=True):
        level = pixels[0, 0] if "bottom" in shown.place else pixels[-1, 0]
        assert (level.max() < 20) == (shown.background == "black")
        mask = np.abs(pixels.astype(int) - level).sum(2) > 60
        rows, columns = np.nonzero(mask)
        assert (np.mean(columns) < 32) == shown.place.endswith("left")
        red, green, blue = np.median(pixels[mask], axis=0)
        largest = ("red", "green", "blue")[int(np.argmax([red, green, blue]))]
        assert shown.colour == ("white" if max(red, green, blue) - min(red, green, blue) < 25 else largest)
        assert (rows.max() - rows.min() > 30) == (shown.size == "large")


def test_the_text_encoder_is_the_same_everywhere_and_tells_captions_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSNR_CACHE", str(tmp_path))
    folder = text_encoder.folder()
    assert text_encoder.folder() == folder and [p.name for p in tmp_path.iterdir()] == [folder.name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.CLIPTextModel.from_pretrained(folder).eval()
    assert weights_hash(model) == ENCODER
    shown = captioned.images("train", 40)
    every = ["", *dict.fromkeys(caption for row in shown.captions for caption in row)]
    ids = tokenizer(every, padding="max_length", max_length=16)["input_ids"]
    assert max(map(len, ids)) == 16 and tokenizer.unk_token_id not in {number for row in ids for number in row}
    with torch.no_grad():
        states = model(torch.tensor(ids)).last_hidden_state.flatten(1)
    apart = torch.cdist(states, states).fill_diagonal_(torch.inf)
    assert apart.min() > 1.0, "states have length 40"


def test_the_shipped_network_names_attributes() -> None:
    """The whole held-out split takes `gsnr fit-demo-attributes --check`; here 96 of its images, and what made.json says of all."""
    net = attributes.load()
    made = captioned.images("heldout", 96, every=True)
    found = fit_attributes.accuracies(net, to_pixels(made.images), made.numbers)
    said = json.loads((attributes.FOLDER / "made.json").read_text())
    assert set(found) == {*ATTRIBUTES, "all"} and abs(found["all"] - said["heldout_accuracy"]["all"]) < 0.05
    assert said["weights_bytes"] < 300_000 and said["captioned_version"] == captioned.VERSION


def test_a_damaged_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"attributes .*cannot be loaded"):
        attributes.load(tmp_path)


def samples(tmp_path: Path, n: int = 12) -> tuple[Path, Path, captioned.Captioned]:
    made = captioned.images("heldout", n)
    np.savez(tmp_path / "samples.npz", arr_0=made.images)
    (tmp_path / "captions.txt").write_text("".join(f"{row[k % 3]}\n" for k, row in enumerate(made.captions)))
    return tmp_path / "samples.npz", tmp_path / "captions.txt", made


def test_attribute_accuracy_is_a_count(tmp_path: Path) -> None:
    """Of real images with their own captions, and with those of the next image."""
    file, text, made = samples(tmp_path)
    found = compare(Asked(samples=file, reference=None, features="attributes", captions=text, batch=5))["metrics"]
    lines = text.read_text().splitlines()
    np.savez(tmp_path / "moved.npz", arr_0=made.images, captions=np.array(lines[1:] + lines[:1]))
    moved = compare(Asked(samples=tmp_path / "moved.npz", reference=None, features="attributes"))["metrics"]
    with torch.no_grad():
        named = attributes.load().named(to_pixels(made.images)).numpy()
    for values, asked in ((found, made.numbers), (moved, np.roll(made.numbers, -1, axis=0))):
        right = named == asked
        withheld = np.array([WITHHELD[VALUES["digit"][row[0]]] == VALUES["colour"][row[2]] for row in asked])
        expected = {"attribute_accuracy": right.all(1).mean(), "attribute_accuracy_seen": right.all(1)[~withheld].mean()}
        expected |= {"attribute_accuracy_withheld": right.all(1)[withheld].mean()}
        expected |= {f"attribute_accuracy_{name}": right[:, k].mean() for k, name in enumerate(ATTRIBUTES)}
        low, high = wilson(float(right.all(1).mean()), len(right))
        expected |= {"attribute_accuracy_low": low, "attribute_accuracy_high": high}
        assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert found["attribute_accuracy"] > moved["attribute_accuracy"]


def test_no_images_of_a_kind_have_no_share() -> None:
    rows = np.ones((3, 6), np.float32) * [1, 1, 1, 1, -1, 0]
    values = attribute_accuracy.measure(rows.astype(np.float32), None)
    assert values["attribute_accuracy"] == 0.0 and values["attribute_accuracy_withheld"] is None
    assert [values[f"attribute_accuracy_{name}"] for name in ATTRIBUTES] == [1.0, 1.0, 1.0, 1.0, 0.0]


def saved_clip(folder: Path, name: str) -> Any:
    made = plugins.find("extractors", name).Extractor.example()
    with torch.no_grad():
        made.model.logit_scale.fill_(1.7)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return made


@pytest.mark.parametrize("name", ["pickscore", "clip_score"])
def test_scores_of_pairs_against_float64(name: str, tmp_path: Path) -> None:
    """A small CLIP from a folder, one pair at a time without padding, pixels by transformers' own preparation, towers in float64; to 1e-5."""
    saved_clip(tmp_path / "clip", name)
    file, text, made = samples(tmp_path, 6)
    found = compare(Asked(samples=file, reference=None, features=name, captions=text, weights_file=str(tmp_path / "clip"), batch=4))["metrics"]
    model = transformers.CLIPModel.from_pretrained(tmp_path / "clip").double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "clip")
    values = []
    for pixels, caption in zip(made.images, text.read_text().splitlines(), strict=True):
        x = np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.BICUBIC)).astype(np.float64) / 255
        x = (x - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
        with torch.no_grad():
            image = model.visual_projection(model.vision_model(torch.from_numpy(x.transpose(2, 0, 1))[None]).pooler_output)[0].numpy()
            words = model.text_projection(model.text_model(**tokenizer([caption], return_tensors="pt")).pooler_output)[0].numpy()
        cosine = image @ words / np.sqrt((image @ image) * (words @ words))
        values.append(np.exp(1.7) * cosine if name == "pickscore" else 100 * max(cosine, 0.0))
    assert found == pytest.approx({name: np.mean(values), f"{name}_se": np.std(values, ddof=1) / 6**0.5}, rel=1e-5)


def test_images_are_prepared_as_transformers_does() -> None:
    """Its Pillow processor, which needs no torchvision; an image that is not square is cut to its middle."""
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = kind(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    made = plugins.find("extractors", "pickscore").Extractor.example()
    for shape in ((64, 64, 3), (33, 50, 3), (90, 41, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(made.prepare(pixels[None])[0].numpy(), expected, atol=1e-5)
    assert middle(pixels, 28).shape == (28, 28, 3)


def test_captions_too_long_for_the_model_are_cut_off() -> None:
    made: ClipPairs = plugins.find("extractors", "clip_score").Extractor.example()
    pixels = captioned.images("heldout", 2).images
    assert np.isfinite(made(pixels, ["red " * 40, ""])["pairs"]).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--features", "attributes"), "says no captions; name a file of them with --captions"),
        (("--features", "attributes", "--captions", "short.txt"), "2 captions, and --samples .* holds 12 images"),
        (("--features", "attributes", "--captions", "absent.txt"), "absent.txt: no such file"),
        (("--features", "attributes", "--captions", "bytes.txt"), "is no UTF-8 text"),
        (("--features", "attributes", "--captions", "samples.npz"), "holds no captions"),
        (("--features", "attributes", "--captions", "numbers.npz"), "captions is int64"),
        (("--features", "attributes", "--captions", "strange.txt"), "'mars' is no word of the demo's captions"),
        (("--features", "demo", "--reference", "samples.npz", "--captions", "captions.txt"), "demo reads none; those that do are"),
        (("--features", "pickscore", "--metrics", "fid", "--captions", "captions.txt"), "--metrics fid"),
        (("--features", "pickscore", "--captions", "captions.txt", "--weights-file", "absent"), "'absent' cannot be loaded"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples(tmp_path)
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\n" * 12)
    (tmp_path / "strange.txt").write_text("a red seven on mars\n" * 12)
    np.savez(tmp_path / "numbers.npz", captions=np.arange(12))
    with pytest.raises(ValueError, match=said) as error:
        call(evaluate.main, "--samples", "samples.npz", *words)
    assert "\n" not in str(error.value)


def test_the_data_are_made_on_first_use_and_captions_can_be_those_of_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSNR_CACHE", str(tmp_path))
    given = {"data": {"path": "demo-text", "demo_train": 8, "demo_heldout": 6}}
    config = resolve(presets.find("mmdit-demo"), given)
    header, own = open_data(config)
    assert header.text_shape == (16, 96) and header.captions == 3 and header.num_classes == 1 and header.text_encoder == "demo"
    shuffled = open_data(resolve(presets.find("mmdit-demo"), {"data": given["data"] | {"captions": "shuffled"}}))[1]
    for split, n in (("train", 8), ("heldout", 6)):
        index, u = np.arange(n), np.full(n, 0.5)
        made = captioned.images(split, n)
        assert own[split].captions(index) == made.captions
        others = shuffled[split].captions(index)
        assert sorted(others) == sorted(made.captions)
        partner = partners(n, config.seed)
        assert [made.captions[k] for k in partner] == others and not (partner == index).any()
        np.testing.assert_array_equal(shuffled[split].texts(index, u), own[split].texts(partner, u))
        np.testing.assert_array_equal(shuffled[split].take(index, ("mean",))["mean"], own[split].take(index, ("mean",))["mean"])
    with pytest.raises(ValueError, match=r"--data.captions shuffled: is of --model.kind mmdit"):
        resolve(presets.find("demo"), {"data": {"captions": "shuffled"}})
