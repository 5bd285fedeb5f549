"""Signals: whichever asks a training to end, it saves; a command that starts others takes them along. Errors are said once, on their own line."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from gsnr import commands
from gsnr.train import opening
from gsnr.train.config import TrainConfig
from gsnr.train.runs import checkpoint
from gsnr.train.runs import progress as running
from gsnr.train.runs.preemption import Preemption
from tests.conftest import REPO
from tests.forked import Forked
from tests.train.run_files import hash_again

PLAIN = ("--preset", "smoke", "--alignment", "none", "--trackers", "none", "--log-every", "1", "--steps", "100000", "--save-every", "100000")
TINY = ("--log-every", "1", "--data.demo-train", "256", "--data.demo-heldout", "256", "--model.hidden-size", "32", "--model.num-heads", "2")


def _awake() -> None:
    """In a child: no signal is ignored, as some are under nohup and in the background of a shell; Ctrl-C raises KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _forked(words: list[str], out: Path) -> Forked:
    """A command in a fork of this process, which has imported what it needs, with signals as Python starts."""
    return Forked(words, REPO, out.with_name("printed"), ready=_awake)


def _until(there: Path, process: int) -> None:
    deadline = time.monotonic() + 300
    while not (there.is_file() and there.stat().st_size):
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert ended is None and time.monotonic() < deadline, ended
        time.sleep(0.02)


def test_every_signal_asks_and_ignored_ones_stay_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    others = {signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    were = {number: signal.signal(number, handler) for number, handler in others.items()}  # some are ignored under nohup
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            with Preemption() as preemption:
                assert not preemption.asked and signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
                os.kill(os.getpid(), number)
                assert preemption.asked and preemption.by == number.name
        with Preemption():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        found = signal.getsignal(signal.SIGINT)
        for number, handler in {signal.SIGUSR1: before, **were}.items():
            signal.signal(number, handler)
    assert found is signal.default_int_handler


def test_streams_that_are_closed_are_no_error() -> None:
    def asked() -> None:
        os.close(1)
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            sys.exit(0 if preemption.asked else 3)

    process = Forked([], REPO, ready=_awake, main=asked)
    assert process.end(60) == 0, process.error


def test_a_run_saves_when_its_terminal_goes_away(tmp_path: Path) -> None:
    """A session of its own on a pseudo-terminal, which is closed: the kernel sends SIGHUP to all of it, workers too, and writing is an error."""
    out, (ours, its) = tmp_path / "run", pty.openpty()

    def at_the_terminal() -> None:
        _awake()
        os.close(ours)
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(its, number)
        os.close(its)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))

    def whole() -> None:
        """With what Python does at the end, where it fails if it cannot."""
        try:
            commands.main()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    process = Forked(["train", *PLAIN, "--data.workers", "1", "--out", str(out)], REPO, ready=at_the_terminal, main=whole)
    os.close(its)
    _until(out / "metrics.jsonl", process.pid)
    os.close(ours)
    assert process.end(120) == 0
    assert (out / "checkpoints" / (out / "LAST").read_text().strip() / "state.json").is_file()


def test_ctrl_c_saves_and_is_130(tmp_path: Path) -> None:
    """As a terminal sends it: to the whole group, the processes that read data included."""
    out = tmp_path / "run"
    process = _forked(["train", *PLAIN, "--data.workers", "1", "--out", str(out)], out)
    _until(out / "metrics.jsonl", process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert process.end(120) == 130 and "Traceback" not in process.error
    assert process.error.splitlines()[-1] == "interrupted", "on a line of its own"
    printed = out.with_name("printed").read_text()
    assert f"stopped by SIGINT after {int((out / 'LAST').read_text())} of 100000 steps; continue with --resume" in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_grid_takes_its_runs_along(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    process = _forked(["grid", "--rows", "sit", "--steps", "100000", "--out", str(out), *TINY], out)
    log = out / "sit-s0" / "metrics.jsonl"
    _until(log, process.pid)
    os.kill(process.pid, number)
    assert process.end(120) == (143 if number == signal.SIGTERM else -9) and "Traceback" not in process.error
    deadline = time.monotonic() + 60
    while not (out / "sit-s0" / "LAST").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert json.loads(log.read_text().splitlines()[-1])["step"] <= int((out / "sit-s0" / "LAST").read_text()), "saved, and went no further"


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_not_missed(smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `gsnr evaluate` beside a training with --keep-last 1: LAST moves on and the folder goes while its files are read."""
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run)
    old = checkpoint.locate(run)
    real, read = checkpoint.read_tensors, []

    def reading(path: Path) -> dict:
        if not read:
            os.rename(old, run / "checkpoints" / "0000031")
            (run / "checkpoints" / "0000031" / "state.json").write_text(
                (run / "checkpoints" / "0000031" / "state.json").read_text().replace('"step": 30,', '"step": 31,')
            )
            hash_again(run / "checkpoints" / "0000031")
            (run / "LAST").write_text("0000031\n")
        read.append(path)
        return real(path)

    monkeypatch.setattr(checkpoint, "read_tensors", reading)
    assert opening.last_checkpoint(run, "ema").step == 31 and len(read) > 1
    (run / "checkpoints" / "0000031" / "ema" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="missing"):
        opening.last_checkpoint(run, "ema")


def test_a_clock_that_does_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.time, "perf_counter", lambda: 7.0)
    progress = running.Progress(Accelerator(cpu=True), TrainConfig(trackers="none"), tmp_path, 0)
    progress.log(1, dict.fromkeys(("steps", "skipped", "loss", "velocity", "align", "grad_norm"), 1.0), 1e-4)
    progress.bar.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["it_per_s"], line["wait_share"], line["wall_s"]) == (None, None, 0.0)


FAILING = """
import sys
from tqdm import tqdm
from gsnr import commandline
def command():
    bar = tqdm(range(9), desc="working", mininterval=0)
    for _ in bar:
        raise ValueError("x: wrong")
commandline.run(command, "gsnr x", "")
"""


def test_errors_stand_on_lines_of_their_own_and_one_process_says_them(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FAILING], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: x: wrong"
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    words = ("--standalone", "--nproc-per-node", "3", str(script))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=REPO,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )
    assert done.returncode and done.stderr.count("error: x: wrong") == 1, done.stderr
