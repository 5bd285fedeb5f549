"""`gsnr sample`: what it refuses before it samples, and that a picture that cannot be written leaves the old one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from gsnr.train import evaluate, sample, samplers
from tests.conftest import call
from tests.train.run_files import hash_again

QUICK = ("--sampling-steps", 1, "--per-class", 1)


def test_bad_input_is_refused_before_anything_is_sampled(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "integrate", lambda *_: pytest.fail("sampled"))
    (tmp_path / "file").write_text("")
    for words, message in (
        (("--out", tmp_path / "a.xyz"), "a.xyz: name a file that ends in .png"),
        (("--out", tmp_path), "name a file that ends in .png"),
        (("--out", tmp_path / "file" / "a.png"), "--out .*file: cannot be written to"),
        (("--classes", 20), "--classes 20: .* has 10"),
    ):
        with pytest.raises(ValueError, match=message):
            call(sample.main, "--ckpt", smoke_run, *QUICK, *words)
    for bounds in (("--cfg", "nan"), ("--cfg", "1e300"), ("--classes", 0), ("--classes", "²")):
        with pytest.raises(ValueError, match=f"{bounds[0]} .*: must be at least"):
            call(sample.main, "--ckpt", smoke_run, *QUICK, *bounds)
    for words in (("--seed", -1), ("--seed", 2**63)):
        with pytest.raises(SystemExit) as stopped:
            call(sample.main, "--ckpt", smoke_run, *QUICK, *words)
        assert stopped.value.code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_full_disk_leaves_the_old_picture(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "samples.png"
    words = ("--ckpt", smoke_run, *QUICK, "--out", out)
    assert call(sample.main, *words, "--classes", 2) == 0
    with Image.open(out) as image:
        size = image.size

    def full(self: Image.Image, path: Path, **_: str) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ValueError, match=r"samples.png: cannot be written \(No space left on device\)"):
        call(sample.main, *words)
    with Image.open(out) as image:
        image.load()
        assert image.size == size
    assert [p.name for p in out.parent.iterdir()] == ["samples.png"]


def test_weights_and_samples_that_are_not_finite(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = samplers.integrate
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="the samples are not finite"):
        patched.setattr(samplers, "integrate", lambda *words: real(*words) / 0)
        call(sample.main, "--ckpt", smoke_run, *QUICK, "--out", tmp_path / "a.png")
    shutil.copytree(smoke_run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "0000030" / "ema" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["blocks.0.mlp.fc1.bias"][0] = float("nan")
    save_file(state, path)
    hash_again(path.parents[1])
    with pytest.raises(ValueError, match=r"tensor 'blocks.0.mlp.fc1.bias' holds values that are not finite"):
        call(evaluate.main, "--ckpt", tmp_path / "run")
    assert not (tmp_path / "a.png").exists()


def test_data_that_moved(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke_run, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "0000030" / "state.json"
    state.write_text(state.read_text().replace('"path": "demo"', '"path": "/nowhere/cache"'))
    hash_again(state.parent)
    with pytest.raises(ValueError, match="was trained on /nowhere/cache, which is not there; name the cache with --data"):
        call(evaluate.main, "--ckpt", tmp_path / "run")
