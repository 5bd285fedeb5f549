"""A disk that is full at some sizes: one line that names the path, and what was there before. `python -m tests.attack full_disk` has all commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.attack import _commands, full_disk


@pytest.fixture(scope="module")
def before(probed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("full") / "before"
    shutil.copytree(probed_run, work / "run")
    return work


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("train", 3000),
        ("probe", 10),
        ("probe", 9000),
        ("figures", 30_000),
        ("tables", 900),
        ("fit-demo-teacher", 5000),
        ("evaluate", 10),
        ("check-plugin", 10),
        ("sample, many", 5000),
    ],
)
def test_a_full_disk(name: str, size: int, before: Path, tmp_path: Path) -> None:
    assert full_disk.once(_commands.COMMANDS[name], before, tmp_path / "work", size) == (None, True)


def test_every_command_is_attacked() -> None:
    assert _commands.unknown() == set()
