"""A model that reads text, from its cache to samples and tables: trained, resumed, sampled, probed, in a pipeline; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gsnr.probes.common.command import main as probe
from gsnr.train import evaluate, sample, text
from gsnr.train.command import main as train
from gsnr.train.data import cache
from gsnr.train.pipeline import SiTPipeline, save_pipeline
from gsnr.train.prepare.command import main as prepare
from gsnr.train.runs import checkpoint
from tests.conftest import call
from tests.train.run_files import assert_same_run, tensors
from tests.train.text_files import POSITIONS, WIDTH, WORDS, text_encoder

IMAGES, HELDOUT = 20, 8
CAPTIONS = [f"a {WORDS[5 + k % 2]} {WORDS[7 + k % 3]}" for k in range(IMAGES)]
SIZES = {"input-size": 2, "patch-size": 1, "hidden-size": 16, "depth": 2, "num-heads": 2, "text-width": WIDTH, "text-tokens": POSITIONS}
MODEL = [word for key, value in {"kind": "mmdit", **SIZES}.items() for word in (f"--model.{key}", str(value))]
EVERY = ("--precision", "no", "--log-every", "1", "--save-every", "2", "--data.workers", "0", "--trackers", "none", "--optim.lr", "1e-2")
ALIGNED = ("--alignment", "uniform", "--alignment.source", "deep", "--alignment.tap", "1")
WORDS_OF_A_RUN = (*MODEL, *EVERY, *ALIGNED, "--batch", "4", "--sample-every", "4", "--gsnr-every", "4", "--gsnr-images", "4")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def data(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for k, caption in enumerate(CAPTIONS):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{k:02d}.png")
        (folder / f"{k:02d}.txt").write_text(f"{caption}\n{caption} on grey\n")
    options = {"data": folder, "captions": "txt", "text-encoder": encoder, "vae": "demo", "resolution": 16, "patch": 1, "heldout": HELDOUT}
    out = tmp_path_factory.mktemp("made") / "cache"
    words = (word for key, value in (options | {"features": "G3,G4", "out": out}).items() for word in (f"--{key}", value))
    assert call(prepare, *words) == 0
    return out


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "text"
    assert call(train, "--data", data, *WORDS_OF_A_RUN, "--steps", "4", "--out", out) == 0
    return out


def test_resumed_it_is_the_same_run(run: Path, data: Path, tmp_path: Path) -> None:
    for steps in ("2", "4"):
        assert call(train, "--data", data, *WORDS_OF_A_RUN, "--steps", steps, "--out", tmp_path / "run", "--resume") == 0
    assert_same_run(run, tmp_path / "run", 4)
    null = torch.from_numpy(cache.open_cache(data, ("text",))[1]["train"].null_text())
    for weights in ("ema", "raw"):
        loaded = checkpoint.load(run, weights)  # type: ignore[arg-type]
        assert torch.equal(loaded.model.state_dict()["null_text"], null) and null.any()
    groups = {json.loads(line)["group"] for line in (run / "gsnr.jsonl").read_text().splitlines()}
    assert {"text", "x of block 1", "context of block 2", "projector"} <= groups and (run / "samples" / "0000004.png").is_file()


def test_the_same_steps_in_other_ways(run: Path, data: Path, tmp_path: Path) -> None:
    """Micro-batches, and activations that are computed again: weights within a hundredth of a step of AdamW."""
    words = ("--data", data, *MODEL, *EVERY, *ALIGNED, "--batch", "4")
    assert call(train, *words, "--steps", "4", "--accumulate", "2", "--checkpointing", "true", "--out", tmp_path / "other") == 0
    one, two = (tensors(folder / "checkpoints" / "0000004") for folder in (run, tmp_path / "other"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=name)


def test_in_bf16_it_is_resumed_bit_for_bit(data: Path, tmp_path: Path) -> None:
    words = ("--data", data, *MODEL, *("bf16" if word == "no" else word for word in EVERY), *ALIGNED, "--batch", "4")
    for out, stops in (("whole", ("4",)), ("resumed", ("2", "4"))):
        for steps in stops:
            assert call(train, *words, "--steps", steps, "--out", tmp_path / out, "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "resumed", 4)


def test_samples_of_prompts_and_of_held_out_captions(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red seven\n\n a blue café \na red seven a red seven a red seven\n")
    few = ("--ckpt", run, "--sampler", "euler", "--sampling-steps", "2", "--cfg", "2")
    assert call(sample.main, *few, "--n", "4", "--prompts", prompts, "--out", tmp_path / "p.npz") == 0
    with np.load(tmp_path / "p.npz") as stored:
        assert stored["labels"].tolist() == [0, 1, 2, 0] and stored["captions"][:2].tolist() == ["a red seven", "a blue café"]
        assert json.loads(str(stored["about"]))["classes"] == "prompts"
        drawn = stored["arr_0"]
    assert "1 of 3 prompts are longer than 6 tokens" in capsys.readouterr().err
    assert call(sample.main, *few, "--n", "3", "--out", tmp_path / "held") == 0
    split = cache.open_cache(data, ("text",))[1]["heldout"]
    told = (tmp_path / "held" / "captions.txt").read_text().splitlines()
    assert told == [captions[0] for captions in split.captions(np.arange(3))]
    assert call(sample.main, *few[:6], "--prompts", prompts, "--per-class", "1", "--out", tmp_path / "one.png") == 0
    assert "row 1: a blue café" in capsys.readouterr().out
    assert call(sample.main, "--grid", *few, "--prompts", prompts, "--out", tmp_path / "grid.png") == 0
    assert drawn.shape == (4, 16, 16, 3)


def test_prompts_where_others_prepared_the_states(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """U-ViT's folder names no text encoder: the one that is named has to say of the empty caption what lies in the model."""
    states = text.encode(str(encoder), ["", *CAPTIONS]).numpy()
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        (tmp_path / "coco" / split).mkdir(parents=True)
        for place, k in enumerate(numbers):
            np.save(tmp_path / "coco" / split / f"{place}.npy", np.random.default_rng(k).normal(size=(8, 2, 2)).astype(np.float32))
            np.save(tmp_path / "coco" / split / f"{place}_0.npy", states[k + 1])
    np.save(tmp_path / "coco" / "empty_context.npy", states[0])
    few = ("--batch", "4", "--steps", "1", "--sample-every", "0", "--gsnr-every", "0", "--out", tmp_path / "run")
    assert call(train, "--data", tmp_path / "coco", "--data.vae", "demo", *MODEL, *EVERY, *few) == 0
    (tmp_path / "prompts.txt").write_text("a red seven\n")
    drawing = ("--ckpt", tmp_path / "run", "--sampler", "euler", "--sampling-steps", "1", "--per-class", "1", "--out", tmp_path / "one.png")
    from_file = (*drawing, "--prompts", tmp_path / "prompts.txt")
    other = text_encoder(tmp_path / "other", seed=1)
    for words, said in (
        (from_file, "does not say which text encoder it reads; name it with --text-encoder"),
        ((*from_file, "--text-encoder", other), "other' is not the one that the data of .* were made with"),
        ((*drawing, "--text-encoder", encoder), "--text-encoder .*: encodes captions of --prompts FILE"),
    ):
        with pytest.raises(ValueError, match=said):
            call(sample.main, *words)
    assert call(sample.main, *from_file, "--text-encoder", encoder) == 0 and "row 0: a red seven" in capsys.readouterr().out


def test_a_pipeline_reads_states(run: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--labels: .* reads captions, and has no classes to name"):
        save_pipeline(checkpoint.load(run), tmp_path / "made", id2label={0: "seven"})
    save_pipeline(checkpoint.load(run), tmp_path / "made")
    pipe = SiTPipeline.from_pretrained(tmp_path / "made")
    pipe.set_progress_bar_config(disable=True)
    states = text.encode(str(encoder), ["a red seven", "a blue zero"])
    how = {"guidance_scale": 2.0, "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    made = pipe(text_states=states, **how).images
    assert made.shape == (2, 4, 2, 2) and not torch.equal(made[0], made[1])
    for bad, said in (
        ({"class_labels": 3}, "class_labels: this model reads text_states"),
        ({}, "text_states: this model reads text_states"),
        ({"text_states": states[:, :2]}, "text_states: of shape"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe(**bad)


def test_probes_and_the_held_out_loss(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--bins", "1", "--n-images", "6", "--fit-samples", "64", "--fit-steps", "2", "--targets", "sra2", "--probe", "alignment,denoising")
    assert call(probe, "--ckpt", run, *few, "--out", tmp_path / "tables") == 0
    table = pd.read_parquet(tmp_path / "tables" / "alignment.parquet")
    assert {"x of block 1", "context of block 1", "block 1", "text", "all"} <= set(table["group"]) and set(table["model"]) == {
        "MMDiT depth 2 width 16 patch 1"
    }
    assert table[(table["control"] == "none") & (table["group"] == "all")]["gsnr"].notna().all()
    assert {"none", "shuffled"} == set(table["control"]), "captions are no classes, and of what is fitted to a constant nothing is left"
    with pytest.raises(ValueError, match=r"--controls shuffled_class: .* reads captions, and has no classes; choose shuffled"):
        call(probe, "--ckpt", run, *few, "--controls", "shuffled,shuffled_class", "--out", tmp_path / "other")
    assert call(probe, "--ckpt", run, *few, "--dry-run") == 0 and "left out: control shuffled_class" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--probe representation: .*: holds neither classes nor a teacher's features"):
        call(probe, "--ckpt", run, "--probe", "representation", "--n-images", "8", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    found = evaluate.evaluate(run, n_images=4)
    assert 0 < found["velocity_loss"] < 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.num-classes", "10"), "--model.num-classes 10: is of --model.kind sit"),
        (("--model.text-width", "7"), "--model.text-tokens 6, --model.text-width 7: the cache's text has 6 and 32"),
        (("--data.control", "shuffled_class"), "--data.control shuffled_class: --model.kind mmdit reads captions, which are no classes"),
        (("--model.kind", "sit"), "--model.text-width 32: is of --model.kind mmdit"),
    ],
)
def test_models_that_do_not_fit_the_cache(words: tuple[str, ...], said: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        call(train, "--data", data, *WORDS_OF_A_RUN, *words, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_and_text_are_not_mixed_up(run: Path, data: Path, smoke_run: Path, tmp_path: Path) -> None:
    of_classes = (*EVERY, "--model.input-size", "2", "--model.patch-size", "1", "--out", tmp_path / "run")
    with pytest.raises(ValueError, match=r"the cache has 1 classes, the model 1000 .*it holds captions: --model.kind mmdit reads them"):
        call(train, "--data", data, *of_classes)
    with pytest.raises(ValueError, match="holds no captions; prepare it again"):
        call(train, *MODEL, *EVERY, "--data", "demo", "--data.demo-train", "256", "--data.demo-heldout", "256", "--out", tmp_path / "run")
    few = ("--n", "2", "--out", tmp_path / "s.npz")
    for words, said in (
        (("--ckpt", run, "--classes", "balanced"), "--classes balanced: .* reads text; name captions"),
        (("--ckpt", run, "--prompts", tmp_path / "no.txt"), "--prompts .*no.txt: cannot be read"),
        (("--ckpt", smoke_run, "--prompts", tmp_path / "no.txt"), "--prompts: .* reads no text, but classes"),
    ):
        with pytest.raises(ValueError, match=said):
            call(sample.main, *words, *few)
