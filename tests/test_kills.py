"""A few `kill -9`; `python -m tests.attack kills` has all commands."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gsnr import files, locks
from gsnr.train.config import resolve
from gsnr.train.demo.cache import demo_cache
from gsnr.train.prepare import shards
from gsnr.train.presets import find
from gsnr.train.runs import folder
from tests.attack._commands import COMMANDS
from tests.attack._kills_of_forks import Undisturbed, once
from tests.train import foreign_files


def test_a_conversion_that_is_killed(tmp_path: Path) -> None:
    """Before every third of its calls that change the disk: the same command makes what it would have made."""
    foreign_files.write(tmp_path / "before" / "foreign.pt", *foreign_files.pair(), steps=7)
    places = (COMMANDS["convert"], tmp_path / "before", tmp_path / "work")
    whole = Undisturbed.of(*places)
    assert whole.calls > 15
    for call in range(1, whole.calls + 1, 3):
        assert once(*places, whole, call) == (None, f"before call {call}")


def test_a_folder_that_is_filled_in_place_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def in_place(folder: Path) -> Iterator[Path]:
        folder.mkdir()
        yield folder

    monkeypatch.setattr(files, "making", in_place)
    foreign_files.write(tmp_path / "before" / "foreign.pt", *foreign_files.pair(), steps=7)
    places = (COMMANDS["convert"], tmp_path / "before", tmp_path / "work")
    whole = Undisturbed.of(*places)
    wrong, where = once(*places, whole, whole.calls)
    assert where is not None and wrong is not None and "exists; name a new folder" in wrong


def test_a_training_that_was_killed_before_it_had_a_configuration_begins_anew(tmp_path: Path) -> None:
    """It leaves a lock, and what was to be config.json."""
    (tmp_path / "lock").touch()
    (tmp_path / ".config.json.host.abc.aside").mkdir()
    for resume in (True, False):
        folder.check(tmp_path, resolve(find("smoke")), resume)
    (tmp_path / "notes").touch()
    with pytest.raises(ValueError, match="exists and is not a run"):
        folder.check(tmp_path, resolve(find("smoke")), resume=True)


def test_demo_data_that_are_killed_in_the_making_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSNR_CACHE", str(tmp_path))
    child = os.fork()
    if not child:
        monkeypatch.setattr("gsnr.train.prepare.shards.finish", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        demo_cache(8, 8, "adaptive")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # a lock that nobody holds, and what was begun
    made = demo_cache(8, 8, "adaptive")
    assert list(tmp_path.iterdir()) == [made]


def test_demo_data_are_made_by_one_of_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The other waits for them and says so."""
    monkeypatch.setenv("GSNR_CACHE", str(tmp_path))
    (begun, begins), (told, tells) = os.pipe(), os.pipe()
    first = os.fork()
    if not first:
        finish = shards.finish
        monkeypatch.setattr(shards, "finish", lambda *args, **options: (os.write(begins, b"."), os.read(told, 1), finish(*args, **options)))
        demo_cache(8, 8, "adaptive")
        os._exit(0)
    os.read(begun, 1)
    monkeypatch.setattr(shards, "finish", None)
    monkeypatch.setattr(locks, "print", lambda *words, **options: (print(*words, **options), os.write(tells, b".")), raising=False)
    made = demo_cache(8, 8, "adaptive")
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
    assert "note: another process makes the demo cache; waiting for it" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [made]


def test_a_turn_that_failed_is_the_next_one_s_alone(tmp_path: Path) -> None:
    """Who waited on the file that the first removes takes its turn on a new one, which nobody else has meanwhile."""
    (begun, begins), (go, going) = os.pipe(), os.pipe()
    path = tmp_path / "lock"
    first = os.fork()
    if not first:
        try:
            with locks.turn(path, "it"):
                os.write(begins, b".")
                os.read(go, 1)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            os._exit(0)
    os.read(begun, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "print", lambda *words, **options: os.write(going, b"."), raising=False)
        with locks.turn(path, "it"):
            assert path.exists()
    os.waitpid(first, 0)
    assert not path.exists()
