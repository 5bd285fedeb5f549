"""The grid of runs and its table."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from gsnr.train import command, evaluate, grid
from gsnr.train.children import Children
from tests.conftest import call

TINY = ("--data.demo-train", "256", "--data.demo-heldout", "256", "--model.hidden-size", "32", "--model.depth", "4", "--model.num-heads", "2")


def test_summary_is_paired_by_seed() -> None:
    runs = pd.DataFrame(
        {
            "row": ["sit", "sit", "sit", "ahpa", "ahpa"],
            "seed": [0, 1, 2, 0, 1],
            "velocity_loss": [1.0, 1.2, 1.1, 0.9, 1.0],
        }
    )
    lines = grid.summary(runs).splitlines()
    assert lines[0] == "| alignment | seeds | held-out velocity loss | held-out velocity loss minus sit |"
    assert lines[2] == "| sit | 3 | 1.1000 ± 0.0577 |  |"
    assert lines[3] == "| ahpa | 2 | 0.9500 ± 0.0500 | -0.1500 ± 0.0500 |"  # differences -0.1 and -0.2


ONE_AT_A_TIME = threading.Lock()


def here(children: Children, words: list[str], threads: int) -> str:
    """What `Children.call` does, in this process: the grid's jobs take turns."""
    assert words[0] == "gsnr" and threads >= 1
    main = {"train": command.main, "evaluate": evaluate.main}[words[1]]
    with ONE_AT_A_TIME, contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(words[2:]) == 0
    return printed.getvalue()


def test_a_command_of_a_run_prints_or_fails_in_one_line() -> None:
    """In a process of its own, as the grid starts each."""
    assert Children().call(["gsnr", "--version"], 1) == "0.1.0\n"
    with pytest.raises(ValueError, match=re.escape("gsnr train --out x --nope 1: error: unknown option 'nope'")):
        Children().call(["gsnr", "train", "--out", "x", "--nope", "1"], 1)


def test_a_command_that_ends_while_all_are_stopped() -> None:
    children = Children()

    def call() -> None:
        with contextlib.suppress(ValueError):
            children.call(["timeit", "-n", "1", "import time; time.sleep(60)"], 1)

    thread = threading.Thread(target=call)
    thread.start()
    while not children.running:
        time.sleep(0.01)
    (child,) = children.running

    class Slow:
        def terminate(self) -> None:
            child.terminate()
            thread.join(0.3)

    children.running.add(Slow())  # type: ignore[arg-type]
    children.stop()
    thread.join(10)
    assert child not in children.running and child.returncode


def test_grid_trains_evaluates_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Children, "call", here)
    monkeypatch.setattr(evaluate, "HEUN_STEPS", 3)
    words = ("--out", tmp_path / "g", "--rows", "sit,ahpa", "--seeds", "1", "--steps", "3", "--frechet", "64", "--jobs", "2", *TINY)
    words = (*words, "--metrics", "precision,kid")
    assert call(grid.main, *words) == 0
    runs = pd.read_csv(tmp_path / "g" / "table.csv")
    assert list(zip(runs["row"], runs["seed"], strict=True)) == [("sit", 1), ("ahpa", 1)]
    assert set(runs["step"]) == {3} and (runs["frechet"] > 0).all() and set(runs["frechet_samples"]) == {64}
    assert runs["precision"].between(0, 1).all() and runs["kid"].notna().all()
    assert "| Fréchet distance | Fréchet distance minus sit | KID | KID minus sit | precision |" in (tmp_path / "g" / "table.md").read_text()
    assert (tmp_path / "g" / "table.md").read_text() == grid.summary(runs)
    one = json.loads((tmp_path / "g" / "ahpa-s1" / "evaluation.json").read_text())
    again = evaluate.evaluate(tmp_path / "g" / "ahpa-s1", frechet=64, metrics=("precision", "kid"))
    for key, value in one["result"].items():  # up to the number of threads
        assert again[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3)), key

    line = evaluate.in_words(again, ("precision", "kid"))
    assert re.fullmatch(r"64 samples against the train split, in features of teacher demo: Fréchet distance \S+ .*, precision \S+, KID \S+", line)

    before = (tmp_path / "g" / "ahpa-s1" / "LAST").stat().st_mtime_ns
    (tmp_path / "g" / "sit-s1" / "evaluation.json").unlink()  # as if it had been killed there
    (tmp_path / "g" / "table.csv").unlink()
    assert call(grid.main, *words) == 0
    assert (tmp_path / "g" / "ahpa-s1" / "LAST").stat().st_mtime_ns == before, "a finished run is left alone"
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "g" / "table.csv"), runs, rtol=1e-3)
    fewer = [word if word != "sit,ahpa" else "ahpa" for word in words]
    assert call(grid.main, *fewer) == 0
    assert list(pd.read_csv(tmp_path / "g" / "table.csv")["row"]) == ["ahpa", "sit"], "finished runs of the folder stay in its table"


def test_rows_of_text_to_image_are_its_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def called(children: Children, words: list[str], threads: int) -> str:
        trained.append(words[words.index("--preset") + 1])
        raise ValueError("no time")

    monkeypatch.setattr(Children, "call", called)
    with pytest.raises(ValueError, match="2 of 2 runs failed; the first: no time"):
        call(grid.main, "--out", tmp_path / "g", "--rows", "mmdit-demo,mmdit-demo-ahpa")
    assert sorted(trained) == ["mmdit-demo", "mmdit-demo-ahpa"]


def test_grid_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--rows 'nope' does not exist; choose from sit, ahpa"):
        call(grid.main, "--out", tmp_path / "g", "--rows", "nope")
    with pytest.raises(ValueError, match="--seeds 'a'"):
        call(grid.main, "--out", tmp_path / "g", "--seeds", "a")
    for words, message in (
        (("--rows", "sit", "--colour", "red"), "unknown option 'colour'"),
        (("--rows", "sit,sit"), "--rows 'sit,sit': names 'sit' twice"),
        (("--rows", "sit,mmdit-demo"), "--rows sit,mmdit-demo: one of them reads captions and one classes"),
        (("--seeds", "1,1"), "--seeds '1,1': names '1' twice"),
        (("--seeds", "²"), "--seeds '²'"),
        (("--seeds", str(2**64)), "a list of whole numbers below"),
        (("--seed", "3"), "--seed: the grid sets it itself"),
        (("--alignment", "sra2"), "--alignment: the grid sets it itself"),
        (("--alignment.tap", "2"), "--alignment.tap: the grid sets it itself"),
        (("--frechet", "32"), "--frechet must be 0 or at least 64"),
        (("--metrics", "sfid", "--frechet", "64"), "--metrics sfid: is of other features than a teacher's"),
        (("--metrics", "cmmd", "--frechet", "64"), "--metrics cmmd: is of other features than a teacher's"),
        (("--metrics", "recal", "--frechet", "64"), "metric 'recal' does not exist; choose from attribute_accuracy, .* .did you mean recall"),
        (("--metrics", "recall"), "--metrics: are of the samples of --frechet N"),
        (("--batch",), "--batch needs a value"),
    ):
        with pytest.raises(ValueError, match=message):
            call(grid.main, "--out", tmp_path / "g", *words)
    assert not (tmp_path / "g").exists()
    job = grid.Job(row="sit", seed=0, out=tmp_path, steps=3, frechet=0)
    job.folder.mkdir()
    for content in ("{", "[]", "{}"):
        (job.folder / "evaluation.json").write_text(content)
        with pytest.raises(ValueError, match=r"sit-s0/evaluation.json: damaged"):
            job.done()
