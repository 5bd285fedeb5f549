"""Writing aside: links are not followed, nothing is left of a kill, several files appear together or not, and every error names its path."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gsnr import commandline, files
from tests.conftest import REPO


def test_links_laid_in_advance_are_not_followed(tmp_path: Path) -> None:
    """The names that files aside had, and the file itself."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".a.{os.getpid()}").symlink_to(victim)
    files.write_text(tmp_path / "a", "new")
    assert victim.read_text() == "mine" and (tmp_path / "a").read_text() == "new"
    (tmp_path / "b").symlink_to(victim)
    for path, what in (("b", "a link"), ("c", "a folder"), ("d", "a device or pipe")):
        if path == "c":
            (tmp_path / path).mkdir()
        if path == "d":
            os.mkfifo(tmp_path / path)
        with pytest.raises(ValueError, match=rf"{path}: {what}, not a file; it is left as it is"):
            files.write_text(tmp_path / path, "new")
    assert victim.read_text() == "mine"
    with files.replacing(tmp_path / "a") as aside:
        assert aside.parent.stat().st_mode & 0o777 == 0o700 and aside.parent.parent == tmp_path
        aside.write_text("newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f".a.{os.getpid()}", "a", "b", "c", "d", "victim"])


def test_what_a_kill_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from gsnr import files\nwith files.replacing(Path(sys.argv[1])) as a:\n"
    code += "    a.write_text('half'); print(flush=True); time.sleep(60)"
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path / name], cwd=REPO, stdout=subprocess.PIPE) for name in ("a", "b")]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline()
    writers[0].send_signal(signal.SIGKILL)
    writers[0].communicate()
    assert len(list(tmp_path.iterdir())) == 2
    files.write_text(tmp_path / "c", "whole")
    (living,) = tmp_path.glob(".*")
    assert living.name.startswith(".b.") and (tmp_path / "c").read_text() == "whole"
    writers[1].terminate()
    writers[1].communicate()


def test_a_folder_aside_that_another_writer_takes_for_left_behind_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = tempfile.mkdtemp, []

    def taken(**places: Any) -> str:
        made.append(make(**places))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", taken)
    files.write_text(tmp_path / "a", "whole")
    assert len(made) == 2 and (tmp_path / "a").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_folders_aside_of_other_hosts_are_left(tmp_path: Path) -> None:
    """Their locks may be seen by their own host alone."""
    for name in (".a.another.12345678.aside", f".{files.HOST}.another.12345678.aside", f".a.{files.HOST}.12345678.aside"):
        (tmp_path / name).mkdir()
    files.write_text(tmp_path / "a", "whole")
    assert all(".another." in path.name for path in tmp_path.glob(".*")) and len(list(tmp_path.iterdir())) == 3


def test_several_files_appear_together_or_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    files.write_texts({one: "1", two: "2"})
    with pytest.raises(OSError) as error, files.together() as replacing:
        with replacing(one) as aside:
            aside.write_text("new")
        with replacing(two):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert (error.value.filename, error.value.errno) == (str(two), errno.ENOSPC)
    assert (one.read_text(), two.read_text()) == ("1", "2") and len(list(tmp_path.iterdir())) == 2
    with files.together() as replacing:
        with suppress(ValueError), replacing(one) as aside:
            aside.write_text("half")
            raise ValueError("caught by whoever writes several")
        with replacing(two) as aside:
            aside.write_text("new")
    assert (one.read_text(), two.read_text()) == ("1", "new") and len(list(tmp_path.iterdir())) == 2


def test_errors_name_the_path_whoever_raises_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    with pytest.raises(OSError) as error, files.replacing(tmp_path / "w.safetensors"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "w.safetensors"))
    with pytest.raises(OSError, match="x") as error, files.replacing(tmp_path / "nowhere" / "x"):
        pass
    assert error.value.filename == str(tmp_path / "nowhere" / "x")

    def refuses(handle: int) -> None:
        raise OSError(errno.EINVAL if os.path.isdir(f"/proc/self/fd/{handle}") else errno.EIO, "odd")

    monkeypatch.setattr(os, "fsync", refuses)
    files.sync(tmp_path)  # a file system on which folders cannot be synced, as CIFS
    (tmp_path / "x").write_text("")
    with pytest.raises(OSError, match="odd") as error:
        files.sync(tmp_path / "x")
    assert error.value.filename == str(tmp_path / "x")


def test_outputs_that_belong_to_something_else_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "0000002" / "ema").mkdir(parents=True)
    for name in ("LAST", "config.json", "checkpoints/0000002/state.json"):
        (run / name).write_text("{}")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "gsnr_cache.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--out \S+config.json: name a file that ends in .html"):
        files.check_output(run / "config.json", "--out", ".html")
    with pytest.raises(ValueError, match=r"0000002, a checkpoint or cache, which takes nothing else in; name another place"):
        files.check_output(run / "checkpoints" / "0000002" / "ema" / "page.html", "--out", ".html")
    for folder in (run / "checkpoints", run / "checkpoints" / "0000002", tmp_path / "cache" / "tables"):
        with pytest.raises(ValueError, match="takes nothing else in"):
            files.check_writable(folder, "--out")
    (run / "page.html").symlink_to(run / "config.json")
    with pytest.raises(ValueError, match=r"page.html: a link, not a file"):
        files.check_output(run / "page.html", "--out", ".html")
    files.check_output(run / "figures" / "page.html", "--out", ".html")
    assert not (run / "figures").exists()


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_told_at_once_names_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="standard output"):
        commandline.tell("words")
