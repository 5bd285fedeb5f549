"""Runs, caches and labels that somebody damaged: one line that names the file, and nothing is trained on them."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gsnr.train.command import main
from gsnr.train.data import cache
from gsnr.train.demo.cache import demo_cache
from gsnr.train.prepare.command import main as prepare
from gsnr.train.prepare.sources import open_source
from gsnr.train.runs import checkpoint
from tests.conftest import REPO, call
from tests.forked import Forked
from tests.train.run_files import hash_again, tensors

RESUME = ("--preset", "smoke", "--trackers", "none", "--steps", 31, "--resume")


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_run, tmp_path / "run")
    return tmp_path / "run"


def change(path: Path, edit: Callable[[dict], Any]) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(edit(values) or values))
    hash_again(path.parent)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda t: t.update({next(k for k in t if k.endswith("|exp_avg")): torch.zeros(3)}), r"exp_avg' of shape \(3,\) is not AdamW's"),
        (lambda t: t.clear(), "holds 0 tensors, not"),
        (lambda t: t.pop(next(k for k in t if k.endswith("|exp_avg"))), "holds .* tensors, not"),
        (lambda t: t.update({"bogus|exp_avg": t.pop(next(iter(t)))}), "tensor 'bogus.exp_avg'"),
    ],
)
def test_optimizer_that_is_not_the_model_s(run: Path, edit: Callable, match: str) -> None:
    path = run / "checkpoints" / "0000030" / "optimizer.safetensors"
    flat = load_file(path)
    edit(flat)
    save_file(flat, path)
    hash_again(path.parent)
    with pytest.raises(ValueError, match=f"optimizer.safetensors: damaged .*{match}"):
        call(main, *RESUME, "--out", run)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda s: s.pop("step"), "no valid 'step'"),
        (lambda s: s.update(step="x"), "no valid 'step'"),
        (lambda s: s.update(step=-3), "step -3"),
        (lambda s: s.pop("cache"), "no valid 'cache'"),
        (lambda s: s.update(cache={}), ""),
        (lambda s: s.update(config=None), "no valid 'config'"),
        (lambda s: s.update(window={"loss": "a"}), "its `window`"),
    ],
    ids=lambda x: x if isinstance(x, str) else "edit",
)
def test_state_that_is_none(run: Path, edit: Callable, match: str) -> None:
    before = (run / "metrics.jsonl").read_text()
    path = run / "checkpoints" / "0000030" / "state.json"
    change(path, lambda s: edit(s) and None)
    with pytest.raises(ValueError, match=f"state.json: damaged .*{match}"):
        call(main, *RESUME, "--out", run)
    assert (run / "metrics.jsonl").read_text() == before
    if "window" not in match:
        with pytest.raises(ValueError, match=r"state.json: damaged"):
            checkpoint.load(run)


@pytest.mark.parametrize(
    ("section", "values", "match"),
    [
        ("model", {"num_heads": 0}, "--model.num-heads 0: must be at least 1"),
        ("model", {"patch_size": 0}, "--model.patch-size 0: must be at least 1"),
        ("model", {"hidden_size": -32}, "--model.hidden-size -32: must be at least 1"),
        ("model", {"depth": 10**9}, "--model.depth 1000000000: must be at least 1 and at most 1024"),
        ("model", {"num_heads": 3}, "32.*3"),
        ("alignment", {"tap": 99}, "alignment.tap 99: this model has blocks 1 to 3"),
        ("alignment", {"name": "foo"}, "alignment 'foo' does not exist"),
        ("model", {"colour": 1}, "unknown option 'model.colour'"),
    ],
)
def test_a_configuration_that_is_none_is_refused_on_loading(run: Path, section: str, values: dict, match: str) -> None:
    path = run / "checkpoints" / "0000030" / "state.json"
    change(path, lambda s: s["config"][section].update(values))
    said = match if "foo" in match else rf"damaged, or of another version \(.*{match}"  # a stranger's alignment may be missing: no damage
    with pytest.raises(ValueError, match=f"state.json: {said}"):
        checkpoint.load(run)


def test_latents_of_another_shape_than_the_model_s(run: Path) -> None:
    change(run / "checkpoints" / "0000030" / "state.json", lambda s: s["cache"].update(latent_shape=[4, 4, 4]))
    with pytest.raises(ValueError, match=r"state.json: damaged.*latents of shape \(4, 4, 4\) for a model of 4 x 8 x 8"):
        checkpoint.load(run)


@pytest.mark.parametrize("content", [b"[]", b'{"config": []}', b'{"config": {}}', b"\xff\xfe"])
def test_config_that_is_none(run: Path, content: bytes) -> None:
    (run / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json: damaged"):
        call(main, *RESUME, "--out", run)


def test_without_last_the_newest_checkpoint_is_the_last(run: Path, smoke_run: Path) -> None:
    (run / "LAST").unlink()
    assert call(main, *RESUME[:-2], 30, "--resume", "--out", run) == 0
    assert checkpoint.locate(run).name == "0000030"
    assert tensors(checkpoint.locate(run)).keys() == tensors(checkpoint.locate(smoke_run)).keys()
    (run / "LAST").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="LAST: damaged"):
        call(main, *RESUME, "--out", run)


@pytest.fixture
def copied(smoke_run: Path, tmp_path: Path) -> Path:
    """The smoke run's cache, to be damaged."""
    shutil.copytree(demo_cache(256, 256, "adaptive"), tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h.update(scale=float("nan")),
        lambda h: h["sizes"].pop("heldout"),
        lambda h: h.update(groups=[]),
        lambda h: h["groups"].update(G3=[1]),
        lambda h: h["groups"].update(G3=[2, 64, 8, 8]),
        lambda h: h.update(num_classes=3),
        lambda h: h["groups"].update(G9=[2, 64, 8, 8]),
    ],
)
def test_caches_that_are_not_what_they_say(copied: Path, tmp_path: Path, edit: Callable) -> None:
    change(copied / cache.HEADER, lambda h: edit(h) and None)
    with pytest.raises(ValueError, match=str(copied)):
        call(main, "--preset", "smoke", "--data.path", copied, "--model.num-classes", 10, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_files_that_contradict_themselves(tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / f"{i}.png")
    for content, match in (
        ("file,label\n0.png,1\n0.png,2\n", "0.png is listed with labels 1 and 2"),
        ("file,label\n../x/0.png,1\n", "is not the name of a file below the folder"),
        ("file,label\n0.png,99999999999999999999999\n", "is not a class number"),
        ("file,label\n0.png,5000000000\n", "is not a class number"),
    ):
        (tmp_path / "labels.csv").write_text(content)
        with pytest.raises(ValueError, match=f"labels.csv: not a labels file .*{match}"):
            open_source(str(tmp_path))
    (tmp_path / "labels.csv").write_text("file,label\n0.png,1\n1.png,0\n", encoding="utf-8-sig")
    assert open_source(str(tmp_path))[0].labels.tolist() == [1, 0]
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "dataset.json").write_text('{"labels": [[5, 1], ["0.png", 2]]}')
    with pytest.raises(ValueError, match="5 is not the name of a file"):
        open_source(str(tmp_path))


def test_other_pictures_with_the_same_labels_are_other_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        pictures = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 3}, features=features).save_to_disk(str(tmp_path / name))
    words = ("--vae", "demo", "--resolution", 64, "--patch", 1, "--heldout", 2, "--features", "none", "--out", tmp_path / "cache")
    assert call(prepare, "--data", tmp_path / "one", *words) == 0
    assert call(prepare, "--data", tmp_path / "one", *words) == 0, "the same again: nothing to do"
    with pytest.raises(ValueError, match=r"--data .images, hash of their names and labels."):
        call(prepare, "--data", tmp_path / "two", *words)
    next((tmp_path / "cache" / "train").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match=r"arrow: missing"):
        call(prepare, "--data", tmp_path / "one", *words)


def test_a_disk_that_is_full_while_saving(run: Path) -> None:
    """Files of more than 100 kB cannot be written: one line, and the last good checkpoint stays the last."""
    limit = (100_000, 100_000)
    full = Forked(["train", *map(str, RESUME), "--out", str(run)], REPO, ready=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert full.end() == 2, full.error
    assert "0000031: the checkpoint cannot be written" in full.error and "the last good one is untouched" in full.error
    assert "Traceback" not in full.error
    assert checkpoint.load(run).step == 30
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["0000010", "0000020", "0000030"]
    assert call(main, *RESUME, "--out", run) == 0 and checkpoint.load(run).step == 31
