"""Processes that one of ours starts end with it, however it ends: commands are asked to, and a training saves first; data workers are killed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PARENT_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2): on Linux a child is told of its parent's death, even by kill -9
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LIBC = ctypes.CDLL(None)


def _bound() -> None:
    """In the child, before it becomes the command."""
    if sys.platform == "linux":
        LIBC.prctl(PARENT_DEATH, signal.SIGTERM)


def bind_worker(number: int) -> None:
    """In a data worker, first: torch's own watch takes five seconds, and then the worker waits for ever where its pipe is full."""
    if sys.platform == "linux":
        LIBC.prctl(PARENT_DEATH, signal.SIGKILL)


class Children:
    """Runs commands, several threads at a time. Within `with children.bound()` a signal to end goes on to all of them."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[str]] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def call(self, command: list[str], threads: int) -> str:
        """What `python -m COMMAND` prints. Raises ValueError with the last line of one that failed or was stopped."""
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        with self.lock:
            if self.stopped:
                raise ValueError(f"{' '.join(command)}: not begun")
            child = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                preexec_fn=_bound,
            )
            self.running.add(child)
        try:
            printed, errors = child.communicate()
        finally:
            with self.lock:
                self.running.discard(child)
        if child.returncode:
            lines = errors.strip().splitlines() or [f"exit code {child.returncode}"]
            raise ValueError(f"{' '.join(command)}: {lines[-1]}")
        return printed

    def stop(self) -> None:
        """Asks all that run to end, and lets none begin. A training saves before it ends."""
        with self.lock:
            self.stopped = True
            for child in self.running:
                child.terminate()

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Signals to end raise SystemExit with the exit code of the signal; whatever is raised inside stops the children."""

        def stop(number: int, frame: FrameType | None) -> None:
            print(f"\nstopped by {signal.Signals(number).name}; runs save and end, and the same command goes on", file=sys.stderr, flush=True)
            raise SystemExit(128 + number)

        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, stop) for number in STOPPING if main and signal.getsignal(number) is not signal.SIG_IGN}
        try:
            yield
        except BaseException:
            self.stop()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
