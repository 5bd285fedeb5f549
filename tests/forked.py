"""A command of ours in a forked process: it need not import anything, and what becomes of it stays there.

The process that forks has imported what the commands need (`imported`), and computes with one thread: a child of one that has used several waits
for the others for ever. So this is imported before torch is.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from gsnr import commands

os.environ["OMP_NUM_THREADS"] = "1"
tqdm.set_lock(threading.RLock())  # its own is shared with forks: one that is killed while it draws a bar would hold it for ever
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


def imported(names: Iterable[str]) -> None:
    """Imports these commands once, not in every child."""
    for name in names:
        import_module(commands.COMMANDS[name].module)


def new_accelerator() -> None:
    """accelerate keeps the precision and the ranks of a process's first run; this makes the next one the first."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


class Forked:
    """A command that works in a process of its own, the leader of a group of its own. Its stderr comes through a pipe, which no disk can fill."""

    def __init__(
        self,
        words: list[str],
        folder: Path,
        printed: Path = Path(os.devnull),
        ready: Callable[[], object] = int,
        main: Callable[[], object] = commands.main,
    ) -> None:
        """folder: where it is called. printed: where its stdout goes. ready: what the process does before it becomes the command, or `main`."""
        self.heard, its = os.pipe()
        self.said = b""
        self.pid = os.fork()
        if not self.pid:
            _become(words, folder, printed, its, ready, main)
        os.close(its)
        os.set_blocking(self.heard, False)

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while part := os.read(self.heard, 1 << 16):
                self.said += part

    def end(self, seconds: float = 600.0) -> int | None:
        """Waits for its exit code, negative for a signal; None where the time was up: then it and all that it started are killed."""
        done, status, until = 0, 0, time.monotonic() + seconds
        while not done and time.monotonic() < until:
            self._hear()
            done, status = os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0 if done else 0.005)
        if not done:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._hear()
        os.close(self.heard)
        return os.waitstatus_to_exitcode(status) if done else None

    @property
    def error(self) -> str:
        """What it said on stderr."""
        return self.said.decode(errors="replace")


def ranks(many: int, words: list[str], folder: Path, main: Callable[[], object] = commands.main, printed: Path = Path(os.devnull)) -> list[Forked]:
    """A command, or `main`, in processes that know of each other as those of torchrun do. Fails with what the first that failed said.

    printed: where the first one's stdout goes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def place(rank: int) -> None:
        its = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": many, "LOCAL_WORLD_SIZE": many, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in its.items()})
        new_accelerator()

    started = [Forked(words, folder, Path(os.devnull) if rank else printed, partial(place, rank), main) for rank in range(many)]
    for one in started:
        assert one.end(300) == 0, one.error
    return started


def _become(words: list[str], folder: Path, printed: Path, heard: int, ready: Callable[[], object], main: Callable[[], object]) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), os.open(printed, os.O_RDWR | os.O_CREAT), heard)):
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        warnings.simplefilter("ignore")
        sys.argv = ["gsnr", *words]
        ready()
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
