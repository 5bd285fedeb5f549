"""`gsnr sample --n N --dry-run`: how long each stage would take, from one batch that is measured here."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from gsnr import files
from gsnr.train import samplers
from gsnr.train.guidance import velocity_of
from gsnr.train.sampling import output, recipe
from gsnr.train.sampling.run import Job, to_device

PASSES = 3  # of the model, timed, after one that is not


def _seconds(work: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _sampling(job: Job, rows: np.ndarray, device: str) -> tuple[float, str]:
    """(seconds of a batch, how they were found)."""
    by, subject = job.recipe, job.subject
    if samplers.evaluations(by.sampler, by.steps) is None:
        return _seconds(lambda: recipe.latents(subject, by, rows, device), device), "one batch, in full"
    asked: list[float] = []

    def at_rest(x: samplers.State, t: float) -> samplers.State:
        asked.append(t)
        return (torch.zeros_like(x[0]), torch.zeros_like(x[1])) if isinstance(x, tuple) else torch.zeros_like(x)

    noise = samplers.noise_of(by.seed, rows, subject.shape, device, subject.extra)
    steps = _seconds(lambda: samplers.integrate(by.sampler, at_rest, noise(0), by.steps, noise), device)
    passes = sum(1 + by.guidance.at(t) for t in asked)
    x, y = noise(0), by.conditions(subject, rows, device)
    with torch.no_grad(), by.computing(subject.loaded.model, device):
        velocity = velocity_of(subject.loaded.model, y)
        velocity(x, 1.0)
        one = _seconds(lambda: [velocity(x, 1.0) for _ in range(PASSES)], device) / PASSES
    return passes * one + steps, f"{passes} passes of {one:.3g} s a batch of {len(rows)}, and {steps:.3g} s of steps and noise"


def _write(job: Job, images: np.ndarray) -> None:
    """A batch, to a shard and from there to the output, beside it and removed."""
    n, side = len(images), job.subject.side
    with files.scratch(job.out) as aside:
        aside.with_name("shard").write_bytes(images.tobytes())
        files.sync(aside.with_name("shard"))
        output.write_npz(aside, iter([images]), (n, side, side, 3), np.zeros(n, dtype=np.int64), {})


def told(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimate(job: Job, device: str) -> list[str]:
    """Lines for a person. Raises ValueError as sampling does."""
    to_device(job.subject, device)
    rows = np.arange(min(job.batch, job.n), dtype=np.int64)
    shape = (len(rows), *job.subject.shape)
    sampling, how = _sampling(job, rows, device)
    stand_in = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    made: list[np.ndarray] = []
    decode = lambda: made.append(recipe.images(job.subject, job.recipe, stand_in, 0))
    decode()
    decoding = _seconds(decode, device)
    writing = _seconds(lambda: _write(job, made[-1]), "cpu")
    stages = {"sampling": sampling, "decoding": decoding, "writing": writing}
    total = {name: seconds * job.n / len(rows) for name, seconds in stages.items()}
    lines = [f"{name:9} {told(seconds):>9}" for name, seconds in total.items()]
    lines[0] += f"    {how}"
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu, {torch.get_num_threads()} threads"
    whole = sum(total.values())
    return [
        f"--dry-run: nothing was sampled. {job.n} samples by one process, estimated from a batch of {len(rows)} measured here ({where}):",
        *lines,
        f"{'in all':9} {told(whole):>9}    {job.n / whole:.3g} images/s; p processes on as many devices of this kind take 1/p of it",
    ]
