"""A monitor as a callback of Accelerate, of transformers' Trainer and of Lightning's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from gsnr.monitor import Monitor
from gsnr.results import Result


class _Steps:
    """Calls a monitor once an optimizer step, however often it is told of it, and says what it warns of."""

    def __init__(self, monitor: Monitor, log: Callable[[dict[str, float], int], object]) -> None:
        self.monitor, self.log, self.last = monitor, log, 0

    def __call__(self, step: int) -> dict[str, Result]:
        if step == self.last:
            return {}
        self.last = step
        before, results = self.monitor.measurements, self.monitor(step)
        if self.monitor.measurements > before:
            self.log(self.monitor.scalars(), step)
            for alert in self.monitor.alerts:
                warnings.warn(f"step {step}: {alert}", stacklevel=3)
        return results


def accelerate(monitor: Monitor, accelerator: Any, first: int = 0) -> Callable[[], dict[str, Result]]:
    """A function to be called after every micro-batch, in all processes. It counts those at which `accelerator.sync_gradients` holds, so optimizer
    steps, from `first` on, calls the monitor with that number, and logs `monitor.scalars()` to the accelerator's trackers.

    Build the monitor on `accelerator.unwrap_model(model)`: per-sample gradients do not go through the distributed wrapper, and sums are added
    over processes all the same."""
    steps = _Steps(monitor, lambda scalars, step: accelerator.log(scalars, step=step))
    done = first

    def after() -> dict[str, Result]:
        nonlocal done
        if not accelerator.sync_gradients:
            return {}
        done += 1
        return steps(done)

    return after


def transformers(monitor: Monitor, log: Callable[[dict[str, float], int], object] | None = None) -> Any:
    """A TrainerCallback: Trainer(..., callbacks=[gsnr.integrations.transformers(monitor)]). Measures at the end of optimizer steps.

    log: where the numbers go (scalars, step); default: to `trainer.state.log_history`. Raises ImportError without transformers."""
    base = import_module("transformers").TrainerCallback

    class GsnrCallback(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.state: Any = None
            self.steps = _Steps(monitor, log or self._remember)

        def _remember(self, scalars: dict[str, float], step: int) -> None:
            self.state.log_history.append(scalars | {"step": step})

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.state = state
            self.steps(state.global_step)

    return GsnrCallback()


def lightning(monitor: Monitor) -> Any:
    """A Callback: Trainer(callbacks=[gsnr.integrations.lightning(monitor)]). Measures after optimizer steps and logs to the trainer's loggers.

    Build the monitor on the module whose gradients are meant, before it is wrapped. Raises ImportError without lightning and pytorch_lightning."""
    try:
        base = import_module("lightning.pytorch").Callback
    except ModuleNotFoundError:
        base = import_module("pytorch_lightning").Callback

    class GsnrCallback(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.trainer: Any = None
            self.steps = _Steps(monitor, self._write)

        def _write(self, scalars: dict[str, float], step: int) -> None:
            for logger in self.trainer.loggers:
                logger.log_metrics(scalars, step=step)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.trainer = trainer
            self.steps(trainer.global_step)

    return GsnrCallback()
