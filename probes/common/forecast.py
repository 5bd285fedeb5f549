"""How long a probe will take and how much memory, from running a small piece of it: what `--dry-run` says.

A probe names in SCALES the options that its time is proportional to. A piece of one bin and a few images is run and its time multiplied; where the
samples of a fit are among them, two pieces tell the fit from the rest. Right within a factor of two or so: small pieces weigh what is done once; how
long projectors descend until they converge is not known before, and not counted.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from gsnr.probes.common.resume_cache import ResumeCache

SMALL = {"bins": 1, "n_images": 32, "draws": 1, "fit_samples": 640, "fit_steps": 6, "train_images": 32}
FIT = "fit_samples"


@dataclass(frozen=True)
class Forecast:
    """seconds: of the whole measurement. memory: bytes at the peak, of the GPU where there is one, else of the process."""

    seconds: float
    memory: int

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(self.seconds + other.seconds, max(self.memory, other.memory))

    def __str__(self) -> str:
        minutes = self.seconds / 60
        length = f"{max(1.0, self.seconds):.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return f"about {length}, {self.memory / 2**30:.1f} GiB of memory"


def _peak() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(probe: ModuleType, subject: Any, options: Any) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        probe.run(subject, options, ResumeCache(Path(folder)), None)
        return time.perf_counter() - start


def forecast(probe: ModuleType, subject: Any, options: Any) -> Forecast:
    """Runs a piece of the probe, twice or three times (the first warms up)."""
    has = {f.name for f in fields(options)}
    small = replace(options, **{key: min(value, getattr(options, key)) for key, value in SMALL.items() if key in has})
    factor = 1.0
    for key in probe.SCALES:
        factor *= getattr(options, key) / getattr(small, key) if key != FIT else 1
    least = replace(small, **{FIT: 64}) if FIT in has else small
    _seconds(probe, subject, least)
    rest = _seconds(probe, subject, least)
    if FIT not in probe.SCALES or small == least:
        return Forecast(rest * factor, _peak())
    a_sample = max(0.0, _seconds(probe, subject, small) - rest) / (small.fit_samples - least.fit_samples)
    return Forecast(a_sample * options.fit_samples + max(0.0, rest - a_sample * least.fit_samples) * factor, _peak())
