"""Checkpoints that are kept, deleted and gone back to; and what looks at them meanwhile."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from gsnr import files
from gsnr.train import config as configs
from gsnr.train import verify
from gsnr.train.command import main
from gsnr.train.runs import checkpoint, training_state
from gsnr.train.runs import folder as runfolder
from tests.conftest import call
from tests.train.run_files import hash_again

RESUME = ("--preset", "smoke", "--trackers", "none", "--steps", 31, "--resume")


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_run, tmp_path / "run")
    return tmp_path / "run"


def last(run: Path) -> Path:
    return run / "checkpoints" / "0000030"


def test_the_newest_checkpoint_that_is_whole_is_never_deleted(run: Path) -> None:
    weights = last(run) / "ema" / checkpoint.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    runfolder.prune(run, 1, 0)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["0000020", "0000030"]


def test_checkpoints_are_ordered_by_step(run: Path, capsys: pytest.CaptureFixture) -> None:
    """From ten million on names have eight digits, and as text 10000000 comes before 9999990."""
    for name, number in (("0000020", "9999990"), ("0000030", "10000000")):
        state = run / "checkpoints" / name / "state.json"
        state.write_text(state.read_text().replace(f'"step": {int(name)},', f'"step": {number},'))
        hash_again(state.parent)
        state.parent.rename(run / "checkpoints" / number)
    (run / "LAST").write_text("9999990\n")
    assert [folder.name for folder in checkpoint.whole(run)] == ["10000000", "9999990", "0000010"]
    assert checkpoint.load(run).step == 10_000_000
    assert f"(move {run}/checkpoints/10000000 away to go on from 9999990)" in capsys.readouterr().err
    (run / "LAST").write_text("10000000\n")
    runfolder.prune(run, 2, 0)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10000000", "9999990"]


def test_a_deletion_leaves_nothing_in_part(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A kill on the way leaves no half checkpoint, and the next save removes what it left; what cannot be deleted ends no training."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *words, **named: None)
        runfolder.prune(run, 2, 0)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [".0000010.gone", "0000020", "0000030"]
    with monkeypatch.context() as patch:
        patch.setattr(training_state.os, "rename", lambda *words: Path("/proc/none/x").stat())
        runfolder.prune(run, 1, 0)
    assert "0000020: cannot be deleted (No such file or directory); it stays" in capsys.readouterr().err
    assert call(main, *RESUME, "--out", run) == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["0000020", "0000030", "0000031"]


def test_going_back_to_the_checkpoint_before(run: Path) -> None:
    """As the message says that a damaged one makes."""
    weights = last(run) / "ema" / checkpoint.WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=rf"; move {last(run)} and {run / 'LAST'} away to go on from the checkpoint before it"):
        call(main, *RESUME, "--out", run)
    assert json.loads((run / "config.json").read_text())["config"]["steps"] == 30, "refused before anything was written"
    last(run).rename(run / "away")
    (run / "LAST").unlink()
    assert call(main, *RESUME, "--out", run) == 0 and checkpoint.load(run).step == 31


def test_verify_beside_a_training(run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being written or deleted is left out, and what goes while it is looked at."""
    shutil.copytree(last(run), run / "checkpoints" / ".0000031.123")
    (run / "checkpoints" / ".0000031.123" / "state.json").unlink()
    real = verify.folder_faults

    def deleting(folder: Path) -> object:
        if folder.name == "0000010":
            training_state.discard(run / "checkpoints" / "0000010")
        return real(folder)

    monkeypatch.setattr(verify, "folder_faults", deleting)
    assert call(verify.main, run) == 0, capsys.readouterr().out


def test_last_that_cannot_be_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is there, and that is said; going on puts LAST right, also where nothing is left to do."""
    real = files.write_text

    def full(path: Path, text: str) -> None:
        if path.name == "LAST":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, text)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"LAST: cannot be written .*0000031 is there and whole"):
        patch.setattr(files, "write_text", full)
        call(main, *RESUME, "--out", run)
    assert checkpoint.load(run).step == 31 and (run / "LAST").read_text() == "0000030\n"
    assert call(main, *RESUME, "--out", run) == 0 and (run / "LAST").read_text() == "0000031\n"


def test_a_machine_that_is_too_small_to_train(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads checkpoints nevertheless, or says itself that it cannot."""
    monkeypatch.setattr(configs, "memory_of_process", lambda: 100 * 100)
    assert checkpoint.load(run).step == 30
    with pytest.raises(ValueError, match="parameters, of 4 bytes each; this machine has"):
        call(main, *RESUME, "--out", run)


def test_verify_misses_files_and_tables(probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(probed_run, copy)
    assert call(verify.main, copy) == 0
    tables = sorted((copy / "probes").glob("*.parquet"))
    assert call(verify.main, copy / "probes") == 0 and f"{len(tables)} files are" in capsys.readouterr().out.splitlines()[-1]
    tables[0].write_text("junk")
    (copy / "metrics.jsonl").unlink()
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^3 of .* files are not as they were written"):
        call(verify.main, copy)
    said = capsys.readouterr().out
    assert all(f"{copy / name}: " in said for name in ("metrics.jsonl", "config.json")) and f"{tables[0]}: not a readable parquet file" in said
    for wrong, message in ((tables[1], "a file; name the folder that it is in"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(ValueError, match=message):
            call(verify.main, copy, wrong)
        assert not capsys.readouterr().out, "before anything is read"
