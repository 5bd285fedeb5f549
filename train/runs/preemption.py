"""Preemption: a scheduler sends SIGTERM before it takes the machine away; training then ends after its step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import torch
from accelerate import Accelerator

AGREE_EVERY = 10  # steps between the processes' asking one another; alone, every step counts


class Preemption:
    """`with Preemption() as preemption:` ... `preemption.agreed(accelerator, step)`: True in every process at the same step, once any of them was
    sent SIGTERM."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        if self.in_main_thread:
            self.before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.in_main_thread:
            signal.signal(signal.SIGTERM, self.before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def agreed(self, accelerator: Accelerator, step: int) -> bool:
        """Every process has to call it with every step."""
        if accelerator.num_processes == 1:
            return self.asked
        if step % AGREE_EVERY:
            return False
        flag = torch.tensor(float(self.asked), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item() > 0)
