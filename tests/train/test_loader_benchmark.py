"""The command that says whether training waits for its data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from gsnr.train import loader_benchmark
from gsnr.train.config import resolve
from gsnr.train.data.cache import open_cache
from tests.conftest import call

SMALL = ("--model.hidden-size", 32, "--model.depth", 4, "--model.num-heads", 2, "--model.input-size", 8, "--batch", 4, "--precision", "no")


def test_share_and_rate_are_means_over_the_lines_after_the_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [(2, 9.0, 1.0), (4, 10.0, 0.5), (6, 13.0, 0.1)]  # step, wall_s, wait_share
    path.write_text("".join(json.dumps({"step": s, "wall_s": w, "wait_share": x}) + "\n" for s, w, x in lines))
    assert loader_benchmark.waited(path) == (pytest.approx((1 * 0.5 + 3 * 0.1) / 4), pytest.approx(4 / 4))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_synthetic_cache_has_the_shapes_of_the_preset(dtype: str, tmp_path: Path) -> None:
    config = resolve({"alignment": {"name": "ahpa"}, "model": {"input_size": 8}})
    loader_benchmark.synthetic_cache(tmp_path / "cache", config, 5, dtype)
    header, splits = open_cache(tmp_path / "cache", ("G3", "G4"))
    assert header.groups == {"G3": (4, 512, 4, 4), "G4": (4, 512, 4, 4)} and header.latent_shape == (4, 8, 8)
    assert (splits["train"].size, splits["heldout"].size, header.dtype) == (5, loader_benchmark.HELDOUT, dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_the_command_trains_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--preset", "ahpa-b2", "--synthetic", 16, "--steps", 7, "--data.workers", 1, "--folder", tmp_path, *SMALL)
    assert call(loader_benchmark.main, *words) == 0
    said = capsys.readouterr().out
    assert re.search(r"training: \d+\.\d images/s \(\d+\.\d\d steps/s of 4\); \d+\.\d % of the time waiting for data", said)
    assert re.search(r"loader alone, 1 workers: \d+\.\d images/s, \d+ MiB/s", said)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_synthetic_captions_of_a_model_that_reads_text(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = (*SMALL, "--model.text-width", 8, "--model.text-tokens", 3)
    words = ("--preset", "mmdit-coco", "--synthetic", 8, "--steps", 5, "--data.workers", 0, "--folder", tmp_path, *small)
    assert call(loader_benchmark.main, *words) == 0 and "of the time waiting for data" in capsys.readouterr().out
    config = resolve({"model": {"kind": "mmdit", "input_size": 4, "text_width": 8, "text_tokens": 3}})
    loader_benchmark.synthetic_cache(tmp_path / "cache", config, 5, "float16")
    header, splits = open_cache(tmp_path / "cache", ("text",))
    assert (header.text_shape, header.captions, header.num_classes) == ((3, 8), 5, 1)
    assert splits["train"].null_text().shape == (3, 8) and [len(some) for some in splits["train"].captions(np.arange(5))] == [5] * 5


def test_a_run_that_was_stopped_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGTERM: training returns early, without all its lines."""
    monkeypatch.setattr("gsnr.train.trainer.train", lambda config, out: None)
    with pytest.raises(ValueError, match="stopped before step 5; nothing was measured"):
        call(loader_benchmark.main, "--preset", "demo", "--steps", 7, "--folder", tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_options(tmp_path: Path) -> None:
    for words, message in (
        (("--steps", 4), "--steps 4: must be at least 5"),
        (("--dtype", "int4"), "--dtype 'int4' does not exist; choose from float16, int8"),
        (("--synthetic", -1), "--synthetic -1: must be at least 0"),
        (("--folder", tmp_path / "nope"), "nope: no such folder"),
        (("--preset", "ahpa-b2"), "--data.path is missing"),
        (("--colour", "red"), "unknown option 'colour'"),
    ):
        with pytest.raises(ValueError, match=message):
            call(loader_benchmark.main, *words)
