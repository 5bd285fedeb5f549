"""A small part of `python -m tests.fuzz`, and a check that it would see a fault."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests import fuzz


@pytest.fixture(scope="module")
def place(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "place"
    fuzz.prepare(folder, smoke_run)
    return folder


def test_odd_command_lines_are_refused_in_one_line(place: Path) -> None:
    found, codes = fuzz.faults(20, 16, place, seconds=10)
    assert not found, "\n".join(found)
    assert codes["2"] > 10


@pytest.mark.parametrize(
    ("code", "error", "left", "fault"),
    [
        (2, "error: no\n", set(), None),
        (0, "", {"new"}, None),
        (None, "", {"new"}, None),
        (2, "error: no\nand more\n", set(), "more than one line"),
        (2, "error: no\n", {"new"}, "left behind new"),
        (1, "", set(), "exit code 1"),
        (-9, "", set(), "exit code -9"),
        (1, "Traceback (most recent call last):\n", set(), "traceback"),
    ],
)
def test_what_a_fault_is(code: int | None, error: str, left: set[str], fault: str | None) -> None:
    assert fuzz.Outcome(code=code, error=error, left=left).fault == fault


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate --ckpt=--", "argument --ckpt: expected one argument"),
        ("sample --ckpt=--", "argument --ckpt: expected one argument"),
        ("bench --memory-of=none", "--memory-of 'none' does not exist"),
        ("probe --ckpt run --draws 1000000000 --out new", "--draws 1000000000: must be at least 1 and at most 1024"),
        ("probe --ckpt run --fit-steps 99999999999999999999 --out new", "--fit-steps 99999999999999999999: must be at least 1 and at most 10000000"),
        ("prepare --data pictures --vae demo --out new --workers 100000", "--workers 100000: must be at least 0 and at most 256"),
        ("prepare --data pictures --vae demo --out new --labels /dev/zero", "/dev/zero: not a labels file (zero: is no regular file)"),
        ("train --preset smoke --data.workers 100000 --out new", "--data.workers 100000: must be at least 0 and at most 256"),
        ("train --preset smoke --config deep.json --out new", "deep.json: cannot be read as JSON (its lists and objects are nested too deeply)"),
        ("train --preset smoke --model.hidden-size 1048576 --out new", "about 6.3e+13 parameters, of 4 bytes each; this machine has"),
        ("convert --ckpt bomb.pt --out new", "bomb.pt: archive/data.pkl in it is compressed"),
        ("grid --jobs 100000 --out new", "--jobs 100000: must be at least 1 and at most 256"),
        ("sample --ckpt run --per-class 100000000", "--per-class 100000000: must be at least 1 and at most 4096"),
        ("sample --ckpt run --per-class 4000 --classes 10", "--per-class 4000: at most 4096 images in one grid"),
        ("evaluate --ckpt run --n-images nan", "argument --n-images: invalid int value: 'nan'"),
        ("figures --run run --out ~", "argument --out: '~' begins with ~, which the shell alone expands"),
        ("tables --run run --out s3://bucket/x", "argument --out: 's3://bucket/x' is an address; only paths on this machine are read and written"),
        ("tables --run run --plugins /dev/zero", "/dev/zero: is no regular file"),
        ("train --preset smoke --out ''", "argument --out: names nothing; a path on this machine is needed"),
    ],
)
def test_bounds_and_paths_are_said(words: str, message: str, place: Path) -> None:
    """Refused before memory, processes or time are taken: within the limits of the fuzzer."""
    outcome = fuzz.tried(shlex.split(words), place)
    assert outcome.fault is None and outcome.code == 2, outcome
    assert message in outcome.error
