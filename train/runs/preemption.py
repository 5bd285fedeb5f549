"""Preemption: a signal that asks training to end; it then ends after its step, with a checkpoint.

SIGTERM and SIGUSR1 come from schedulers before they take the machine away, SIGHUP when the terminal goes, SIGINT from Ctrl-C (a second one ends
training at once). A signal that was ignored before, as SIGHUP is under nohup, stays ignored.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator

from gsnr.train import children

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
LAST_MOMENTS_MS = 200
AGREE_EVERY = 10  # steps between the processes' asking one another; alone, every step counts


def left_to_the_trainer(worker: int) -> None:
    """For the processes that read data: a signal to all of the group, such as Ctrl-C, is the trainer's, who needs them for its step."""
    children.bind_worker(worker)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Preemption:
    """`with Preemption() as preemption:` ... `preemption.agreed(accelerator, step)`: True in every process at the same step, once any of them was
    sent one of the signals. `by` says which this process was sent."""

    def __init__(self) -> None:
        self.asked = False
        self.by = "a signal"
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.asked and name == self.by == "SIGINT":
            raise KeyboardInterrupt
        self.asked, self.by = True, name
        _leave_what_is_gone(all_terminals=number == signal.SIGHUP)

    def agreed(self, accelerator: Accelerator, step: int) -> bool:
        """Every process has to call it with every step."""
        if accelerator.num_processes == 1:
            return self.asked
        if step % AGREE_EVERY:
            return False
        flag = torch.tensor(float(self.asked), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item() > 0)


def _leave_what_is_gone(all_terminals: bool) -> None:
    """Writing to a terminal or a pipe whose other end is gone is an error, and would end training before it has saved. Who sent the signal may
    be about to go. all_terminals: those that do not say so yet, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):  # of a stream that is closed
            watch = select.poll()
            watch.register(descriptor, 0)  # errors and hang-ups are always said
            if (all_terminals and stat.S_ISCHR(os.fstat(descriptor).st_mode)) or watch.poll(LAST_MOMENTS_MS):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
