"""MS-COCO as U-ViT and REPA prepare it: moments, states of captions and the empty one's, read as they lie."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from gsnr.train.config import TEXT, DataConfig
from gsnr.train.data import cache, heldout, permutation, rng
from gsnr.train.data.batches import StepBatches
from gsnr.train.data.latent_folders import open_folder

TRAIN, VAL, SHAPE, TEXT_SHAPE = 8, 3, (8, 8, 8), (5, 12)  # the demo VAE's moments
RNG = np.random.default_rng(0)
MOMENTS = RNG.normal(size=(TRAIN + VAL, *SHAPE)).astype(np.float32)
COUNTS = [1 + k % 3 for k in range(TRAIN + VAL)]
STATES = [RNG.normal(size=(n, *TEXT_SHAPE)).astype(np.float32) for n in COUNTS]
EMPTY = RNG.normal(size=TEXT_SHAPE).astype(np.float32)


def write(folder: Path, images: range, leading: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, k in enumerate(images):
        np.save(folder / f"{number}.npy", MOMENTS[k][None] if leading else MOMENTS[k])
        (folder / f"{number}.png").write_bytes(b"not read")
        for n, states in enumerate(STATES[k]):
            np.save(folder / f"{number}_{n}.npy", states)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    folder = tmp_path / "coco256_features"
    write(folder / "train", range(TRAIN))
    write(folder / "val", range(TRAIN, TRAIN + VAL), leading=True)
    (folder / "run_vis").mkdir()
    np.save(folder / "empty_context.npy", EMPTY)
    return folder


def opened(folder: Path, needs: tuple[str, ...] = (TEXT,), **changes: object) -> tuple[cache.Header, dict[str, cache.Split]]:
    found = open_folder(DataConfig(**({"path": str(folder), "vae": "demo", "heldout": 2} | changes)), needs, 1000)
    assert found is not None
    return found


def check_rows(split: cache.Split, numbers: list[int], images: list[int]) -> None:
    """images: their places in MOMENTS."""
    assert split.size == len(images)
    for s in (split, pickle.loads(pickle.dumps(split))):
        index = np.arange(split.size)[::-1]
        rows = s.take(index, ("mean", "std", "label", "image_id"))
        np.testing.assert_array_equal(rows["image_id"], numbers[::-1])
        assert not rows["label"].any()
        np.testing.assert_array_equal(rows["mean"], MOMENTS[images[::-1], :4])
        np.testing.assert_allclose(rows["std"], np.exp(MOMENTS[images[::-1], 4:].astype(np.float64) / 2), rtol=1e-6)
        for u in (0.0, 0.5, 0.99):
            found = s.texts(index, np.full(len(index), u))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, [STATES[k][int(u * COUNTS[k])] for k in images[::-1]])
        np.testing.assert_array_equal(s.null_text(), EMPTY)


def test_val_is_held_out_where_it_is_there(coco: Path) -> None:
    header, splits = opened(coco)
    assert header.sizes == {"train": TRAIN, "heldout": VAL} and header.num_classes == 1 and header.groups == {}
    assert header.text_shape == TEXT_SHAPE and header.captions == 3 and header.latent_shape == (4, 8, 8) and header.text_sha == ""
    check_rows(splits["train"], list(range(TRAIN)), list(range(TRAIN)))
    check_rows(splits["heldout"], list(range(TRAIN, TRAIN + VAL)), list(range(TRAIN, TRAIN + VAL)))


def test_train_alone_and_numbered_files_hold_some_out(coco: Path, tmp_path: Path) -> None:
    flat = shutil.copytree(coco / "train", tmp_path / "flat")
    shutil.copy(coco / "empty_context.npy", flat)
    members = heldout.choose(TRAIN, 2)
    for folder in (coco / "train", flat):
        header, splits = opened(folder)
        assert header.sizes == {"train": TRAIN - 2, "heldout": 2}
        for name, split in splits.items():
            check_rows(split, members[name].tolist(), members[name].tolist())
    with pytest.raises(ValueError, match=r"--data\.heldout 8: must be at least 1 and leave some of the 8 images"):
        opened(flat, heldout=8)
    assert opened(coco, heldout=800)[0].sizes["heldout"] == VAL
    assert open_folder(DataConfig(path=str(tmp_path)), (), 1) is None


def test_a_step_s_batch(coco: Path) -> None:
    header, splits = opened(coco)
    batch = StepBatches(split=splits["train"], groups=(), always=(TEXT,), batch=8, seed=5, label_dropout=0.1)[1]
    drawn = rng.draw(5, "train", np.arange(8, 16), (4, 8, 8), captions=True)
    index = permutation.image_of(np.arange(8, 16), TRAIN, 5)
    np.testing.assert_array_equal(batch[TEXT], [STATES[k][int(u * COUNTS[k])] for k, u in zip(index, drawn.caption_u, strict=True)])
    raw = MOMENTS[index, :4] + np.exp(MOMENTS[index, 4:].astype(np.float64) / 2) * drawn.posterior
    np.testing.assert_allclose(batch["latent"].numpy(), raw * header.scale, rtol=1e-5, atol=1e-6)
    other, _ = opened(coco, latent_stats="0.23010")
    np.testing.assert_allclose(other.scaling.final(raw), raw * 0.2301)
    assert opened(coco, latent_stats="vae")[0].scaling == header.scaling
    with pytest.raises(ValueError, match=r"--data\.latent-stats x\.pt: U-ViT's latents take a factor .*0\.23010"):
        opened(coco, latent_stats="x.pt")


def test_words_are_those_of_coco_s_annotations(coco: Path) -> None:
    _, splits = opened(coco)
    with pytest.raises(
        ValueError, match=r"train: holds the states of captions, not their words; put COCO's captions_train2014\.json into \S+features"
    ):
        splits["train"].captions(np.arange(2))
    words = [[f"{k} é {n}" for n in range(COUNTS[k])] for k in range(TRAIN + VAL)]

    def annotate(path: Path, images: range) -> None:
        """Listed backwards, with ids that rise with the number of the image."""
        listed = [{"id": 7 * k + 3, "file_name": f"COCO_{1000 - k}.jpg"} for k in reversed(images)]
        notes = [{"image_id": 7 * k + 3, "caption": f" {caption} \n"} for k in reversed(images) for caption in words[k]]
        path.write_text(json.dumps({"images": listed, "annotations": notes}))

    (coco / "annotations").mkdir()
    annotate(coco / "captions_train2014.json", range(TRAIN))
    annotate(coco / "annotations" / "captions_val2014.json", range(TRAIN, TRAIN + VAL))
    assert splits["train"].captions(np.array([5, 0])) == [tuple(words[5]), tuple(words[0])]
    assert splits["heldout"].captions(np.arange(VAL)) == [tuple(some) for some in words[TRAIN:]]
    for wrong in (range(TRAIN - 1), range(1, TRAIN + 1)):
        annotate(coco / "captions_train2014.json", wrong)
        with pytest.raises(ValueError, match=r"captions_train2014\.json: not the captions of \S+train: the number of images"):
            opened(coco)[1]["train"].captions(np.arange(2))
    (coco / "captions_train2014.json").write_text("[]")
    with pytest.raises(ValueError, match=r"captions_train2014\.json: not COCO's annotations"):
        opened(coco)[1]["train"].captions(np.arange(2))


def test_what_is_missing_or_damaged_is_named(coco: Path) -> None:
    with pytest.raises(ValueError, match=r"U-ViT's latents do not say which VAE made them; name it with --data\.vae"):
        opened(coco, vae="")
    command = (
        r"no features of G3; .*gsnr prepare --data COCO/train2014 --vae demo --features G3 --captions FILE --text-encoder openai/\S+ --out CACHE"
    )
    with pytest.raises(ValueError, match=command):
        opened(coco, ("G3", TEXT))
    _, splits = opened(coco)
    caption, moments, third = (coco / "train" / name for name in ("4_1.npy", "6.npy", "5_1.npy"))
    caption.write_bytes(caption.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train/4_1\.npy: missing or damaged"):
        splits["train"].texts(np.array([3, 4]), np.array([0.6, 0.6]))
    np.save(caption, np.zeros((5, 13), np.float32))
    with pytest.raises(ValueError, match=r"4_1\.npy: missing or damaged \(float32 of shape \(5, 13\), not \(5, 12\)\)"):
        splits["train"].texts(np.array([4]), np.array([0.6]))
    moments.unlink()
    third.unlink()
    with pytest.raises(ValueError, match=r"train/6\.npy: missing or damaged"):
        splits["train"].take(np.array([6]), ("mean",))
    with pytest.raises(ValueError, match=r"train: 2 files are missing, the first 6\.npy"):
        opened(coco)
    for path in (coco / "train").glob("7_*.npy"):
        path.unlink()
    with pytest.raises(ValueError, match=r"train: 3 files are missing, the first 6\.npy"):
        opened(coco)
    shutil.rmtree(coco / "train")
    (coco / "train").mkdir()
    with pytest.raises(ValueError, match=r"train: holds no numbered files"):
        opened(coco)


def test_deviations_in_place_of_variances_are_refused(coco: Path) -> None:
    np.save(coco / "train" / "0.npy", np.abs(MOMENTS[0]))
    with pytest.raises(ValueError, match=r"0\.npy: its second half is nowhere negative: standard deviations"):
        opened(coco)


def test_other_folders_say_that_they_have_no_text(tmp_path: Path) -> None:
    (tmp_path / "vae-sd").mkdir()
    np.save(tmp_path / "vae-sd" / "a.npy", np.abs(MOMENTS[0]))
    np.save(tmp_path / "vae-sd" / "b.npy", np.abs(MOMENTS[0]))
    (tmp_path / "vae-sd" / "dataset.json").write_text('{"labels": [["a.npy", 0], ["b.npy", 1]]}')
    with pytest.raises(ValueError, match=r"REPA latents hold no features of text; .* --captions FILE --text-encoder"):
        opened(tmp_path, heldout=1)
    _, splits = opened(tmp_path, (), heldout=1)
    with pytest.raises(ValueError, match="REPA latents have no captions; gsnr prepare"):
        splits["train"].null_text()


def test_other_states_under_the_same_names_are_other_data(coco: Path) -> None:
    before = opened(coco)[0].rows_sha
    assert opened(coco)[0].rows_sha == before
    np.save(coco / "train" / "2_0.npy", STATES[2][0] + 1)
    after = opened(coco)[0].rows_sha
    assert after["train"] != before["train"] and after["heldout"] == before["heldout"]
