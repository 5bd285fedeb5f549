"""One fork from beginning to end: its run folder, its training, its measurement. What is finished is not done again."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsnr import checksums
from gsnr.train import trainer
from gsnr.train.config import TrainConfig
from gsnr.train.forking import measure, start
from gsnr.train.forking.compare import Measured, deleted_distances
from gsnr.train.forking.rows import ForkRow
from gsnr.train.metrics import Moments
from gsnr.train.runs import checkpoint

MAKING = threading.Lock()  # of a run folder: initialising a projector sets torch's seed


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row with a seed. record: what its folder must have been made with, beside the number of steps."""

    row: ForkRow
    seed: int
    config: TrainConfig
    folder: Path
    record: dict[str, Any]
    asked: measure.Asked

    @property
    def about(self) -> dict[str, Any]:
        """What its measurement must have been made with."""
        return self.record | {"steps": self.config.steps} | self.asked.settings

    def check(self) -> None:
        """Raises ValueError for a folder that holds something else."""
        path = self.folder / start.RECORD
        if not path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ValueError(f"--out {self.folder}: exists and is no fork; name a new folder")
            return
        found = checksums.read_sealed(path)
        for key, value in self.record.items():
            if found.get(key) != value:
                raise ValueError(f"--out {self.folder}: a fork whose {key} was {found.get(key)!r}, now {value!r}; name a new folder")

    def done(self) -> bool:
        return measure.read(self.folder, self.about) is not None

    def begin(self, parent: start.Parent) -> None:
        """Makes its run folder, where there is none."""
        with MAKING:
            if not (self.folder / start.RECORD).is_file():
                start.begin(self.folder, parent, self.config, self.record)

    def work(self, reference: measure.Reference) -> None:
        """Trains what is left, and measures. Raises ValueError for a training that was stopped, KeyboardInterrupt for Ctrl-C."""
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train(self.config, self.folder, resume=True)
        step = int(checkpoint.locate(self.folder).name)
        if step != self.config.steps:
            raise ValueError(f"{self.folder}: stopped at step {step} of {self.config.steps}; call the same again")
        values, arrays = measure.measure(self.folder, reference, self.asked)
        measure.write(self.folder, self.about, values, arrays, time.perf_counter() - started)

    def measured(self, moments: Moments | None) -> Measured | None:
        """What it became; None for one that is not finished. moments: of the train split's features."""
        found = measure.read(self.folder, self.about)
        if found is None:
            return None
        values, arrays = found
        deleted_K = deleted_distances(arrays["features"], moments) if moments is not None and "features" in arrays else np.empty(0)
        return Measured(row=self.row.label, seed=self.seed, values=values, loss_TN=arrays["velocity"].astype(np.float64), deleted_K=deleted_K)
