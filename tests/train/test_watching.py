"""The lock of a run says who holds it, and holds when it is deleted; logs lose no line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gsnr import logs
from gsnr.locks import Lock
from gsnr.train import trainer
from gsnr.train.command import main
from gsnr.train.runs import folder as runfolder
from tests.conftest import REPO, call
from tests.forked import Forked
from tests.train.run_files import assert_same_run

RESUME = ("--preset", "smoke", "--trackers", "none", "--steps", 31, "--resume")


@contextmanager
def another(code: str) -> Iterator[subprocess.Popen]:
    """A process that runs this and then waits."""
    with subprocess.Popen([sys.executable, "-c", f"{code}; print(); input()"], cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        yield other
        other.kill()


@contextmanager
def holder(hold: Callable[[], object]) -> Iterator[None]:
    """A fork of this process that keeps what `hold` gives."""
    ready, its = os.pipe()

    def keep() -> None:
        held = hold()
        os.write(its, b"x")
        signal.pause()
        del held

    process = Forked([], REPO, main=keep)
    os.close(its)
    assert os.read(ready, 1), process.end(60) or process.error
    os.close(ready)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.end(60) == -signal.SIGKILL


def test_a_lock_names_its_holder_and_is_put_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "lock"
    holds = f"from gsnr.locks import Lock; from pathlib import Path; held = Lock(Path({str(path)!r}))"
    with Lock(path) as held:
        assert json.loads(path.read_text())["pid"] == os.getpid()
        held.watch()
        assert capsys.readouterr().err == ""
        path.unlink()
        held.watch()
        assert json.loads(path.read_text())["pid"] == os.getpid() and "put back" in capsys.readouterr().err
        path.unlink()
        with (
            another(holds) as other,
            pytest.raises(ValueError, match=rf"another process is at work there \(process {other.pid} on .*, since [^ ]+\)$"),
        ):
            held.watch()


def test_a_lock_that_is_away_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """As a second trainer has it, before it is refused for config.json."""
    path = tmp_path / "lock"
    with Lock(path) as held:
        path.unlink()
        holds = f"from gsnr.locks import Lock; from pathlib import Path; held = Lock(Path({str(path)!r}))"
        code = f"import time; {holds}; print(flush=True); time.sleep(0.3)"
        with subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline()
            held.watch()
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_run_is_held_before_it_is_read(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, holds = tmp_path / "run", runfolder.restore, []
    shutil.copytree(smoke_run, out)

    def restored(*words: object) -> object:
        done = subprocess.run(
            [sys.executable, "-c", f"from gsnr import locks; from pathlib import Path; locks.take(Path({str(out)!r}) / 'lock')"], cwd=REPO
        )
        holds.append(done.returncode)
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(runfolder, "restore", restored)
    assert call(main, "--preset", "smoke", "--trackers", "none", "--resume", "--out", out) == 0
    assert holds == [1]
    with holder(lambda: runfolder.Hold(out)):
        pass  # no step was left, and it is free again


def test_deleting_the_lock_admits_no_second_trainer(smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    config = (out / "config.json").read_bytes()

    def hold() -> runfolder.Hold:
        held = runfolder.Hold(out)
        held.record({})
        return held

    with holder(hold):
        (out / "lock").unlink()
        (out / "config.json").write_bytes(config)  # in place, as the holder's
        with pytest.raises(ValueError, match=f"{out}: another process is at work there"):
            call(main, *RESUME, "--out", out)
    assert call(main, *RESUME, "--out", out) == 0


def test_a_trainer_puts_its_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    out, real = tmp_path / "run", trainer.optimisation_step

    def deletes(*words: object, **named: object) -> object:
        (out / "lock").unlink(missing_ok=True)
        return real(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "optimisation_step", deletes)
    words = ("--preset", "smoke", "--alignment", "none", "--trackers", "none", "--steps", 2, "--log-every", 1)
    assert call(main, *words, "--out", out) == 0
    assert capsys.readouterr().err.count("lock: was deleted or replaced while it was held; put back") == 2


def test_damaged_and_missing_lines_are_reported_and_kept(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = lines[2].replace('"loss": ', '"loss": 1')  # still JSON
    path.write_text("".join([lines[0], changed, *lines[3:]]) + '{"step": 4')
    (out / "router.jsonl").write_bytes(b"\xff\n" + (out / "router.jsonl").read_bytes())
    assert call(main, *RESUME, "--out", out) == 0
    said = capsys.readouterr().err
    assert f"{path}: 2 damaged lines; they are kept in metrics.jsonl.cut" in said
    assert f"{path}: 2 of the 6 lines up to step 30 are missing or damaged" in said
    assert "router.jsonl: 1 damaged lines" in said
    assert (out / "metrics.jsonl.cut").read_text() == changed + '{"step": 4\n'
    assert path.read_text() == "".join([lines[0], *lines[3:]])
    assert [line["step"] for line in logs.read(path, 30)] == [5, 20, 25, 30]


def test_lines_that_are_done_again_are_kept_aside(smoke_run: Path, tmp_path: Path) -> None:
    """As after a kill at step 27 whose last checkpoint was that of 20."""
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    shutil.rmtree(out / "checkpoints" / "0000030")
    (out / "LAST").unlink()
    before = (out / "metrics.jsonl").read_text().splitlines()
    assert call(main, "--preset", "smoke", "--resume", "--out", out) == 0
    assert (out / "metrics.jsonl.cut").read_text().splitlines() == before[4:]
    assert_same_run(smoke_run, out, 30)
    assert set(runfolder.log_lengths(out).values()) == {6, 7, 0}
