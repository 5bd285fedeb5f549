"""`gsnr sample --n N`: every process draws its share of the shards; the first makes the output of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import gsnr
from gsnr.train.prepare.processes import Processes, joined
from gsnr.train.sampling import output, recipe, shards
from gsnr.train.sampling.recipe import Recipe
from gsnr.train.sampling.subject import Subject

SHARD = 128  # samples, of a shard: few enough files to open, small enough to lose


@dataclass(frozen=True, kw_only=True)
class Job:
    """shard: samples of a shard; batch: of a pass."""

    subject: Subject
    recipe: Recipe
    n: int
    out: Path
    batch: int
    shard: int

    @property
    def shards(self) -> list[NDArray[np.int64]]:
        return shards.cut(self.n, self.shard)

    def labels(self) -> NDArray[np.int64]:
        """Of each sample: its class, or the number of its prompt."""
        numbers = np.arange(self.n, dtype=np.int64)
        return self.recipe.labels(numbers, self.subject.classes) if (prompts := self.subject.prompts) is None else numbers % len(prompts.texts)

    def options(self) -> dict[str, Any]:
        """What the samples depend on. Not among them: batch, device and number of processes, which may change on the way (the last bits of what
        is drawn from then on may change with them)."""
        loaded, frozen = self.subject.loaded, self.subject.frozen
        trained = loaded.header
        return {
            "checkpoint": loaded.run_name,
            "checkpoint_sha256": loaded.sha,
            "step": loaded.step,
            "weights": loaded.weights,
            "n": self.n,
            **self.recipe.about(),
            **({} if self.subject.prompts is None else self.subject.prompts.about()),
            "vae": frozen.name,
            "vae_sha256": frozen.sha,
            "vae_of_training": trained.vae if trained else None,
            "vae_of_training_sha256": trained.vae_sha if trained else None,
            "latents_per_shard": self.shard,
        }

    def about(self, latents_sha: list[str], device: str) -> dict[str, Any]:
        """The record of the output. latents_sha: of each shard."""
        whole = hashlib.sha256("".join(latents_sha).encode()).hexdigest()
        where = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
        versions = {"gsnr": gsnr.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__, "numpy": np.__version__}
        return self.options() | {"batch": self.batch, "device": where, "latents_sha256": whole, "versions": versions}


def draw_shard(job: Job, numbers: NDArray[np.int64], device: str, add: Callable[[int], None]) -> tuple[NDArray[np.uint8], str]:
    """(images, SHA-256 of the latents) of these samples. add: told of each batch."""
    made, digest = [], hashlib.sha256()
    for rows in np.split(numbers, range(job.batch, len(numbers), job.batch)):
        latents_BCHW = recipe.latents(job.subject, job.recipe, rows, device)
        digest.update(latents_BCHW.cpu().numpy().tobytes())
        made.append(recipe.images(job.subject, job.recipe, latents_BCHW, int(rows[0])))
        add(len(rows))
    return np.concatenate(made), digest.hexdigest()


def to_device(subject: Subject, device: str) -> None:
    subject.loaded.model.to(device)
    subject.frozen.model.to(device)


class _Progress:
    """A bar over the samples of all processes, with images/s and what is left, shown by the first."""

    def __init__(self, n: int, done: int, team: Processes) -> None:
        self.team, self.before = team, done
        self.bar = tqdm(total=n, initial=done, desc="sample", unit="image", mininterval=1.0, smoothing=0, disable=team.rank > 0)

    def add(self, images: int = 0) -> None:
        self.bar.update(self.before + self.team.count(images) - self.bar.n)

    def close(self) -> None:
        self.bar.close()


def _begin(job: Job, place: shards.Workplace, held: ExitStack, leads: bool) -> list[int] | None:
    """The shards that are still to be drawn; None where the output is there. The leading process makes the folder ready."""
    if output.is_made(job.out, job.options()):
        return None
    if leads:
        held.enter_context(place.locked())
        place.begin(job.options())
    return [number for number in range(len(job.shards)) if not place.finished(number)]


def _finish(job: Job, place: shards.Workplace, device: str) -> None:
    """The output of finished shards. Raises ValueError naming one that is damaged."""
    count, side = len(job.shards), job.subject.side
    about = job.about([place.read(number)[1] for number in range(count)], device)
    labels = job.labels()
    captions = None if (prompts := job.subject.prompts) is None else [prompts.text(number) for number in range(job.n)]

    def parts() -> Iterator[NDArray[np.uint8]]:
        for number in tqdm(range(count), desc=f"write {job.out.name}", unit="shard", leave=False, mininterval=1.0):
            yield place.read(number)[0]

    if job.out.suffix:
        output.write_npz(job.out, parts(), (job.n, side, side, 3), labels, about, captions)
    else:
        output.write_folder(job.out, parts(), labels, about, captions)


def run(decide: Callable[[], Job], out: Path) -> None:
    """decide: makes the job; raises ValueError for bad input. All processes call this."""
    place = shards.Workplace(out)
    with ExitStack() as held:
        team = held.enter_context(joined())
        job = team.agree(decide)
        todo = team.agree(lambda: _begin(job, place, held, team.rank == 0))
        if todo is None:
            if team.rank == 0:
                place.remove()
                print(f"{out}: already drawn with these options; nothing to do")
            return
        done = job.n - sum(len(job.shards[number]) for number in todo)
        progress = held.enter_context(closing(_Progress(job.n, done, team)))
        to_device(job.subject, team.device)
        try:
            for number in todo[team.rank :: team.world]:
                place.write(number, *draw_shard(job, job.shards[number], team.device, progress.add))
            team.wait(progress.add)
            progress.close()
            if team.rank:
                return
            _finish(job, place, team.device)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"finished shards stay in {place.aside}; the same command goes on") from stop
    place.remove()
    loaded, by = job.subject.loaded, job.recipe
    print(f"wrote {out}: {job.n} samples of {loaded.weights} weights at step {loaded.step}, {by.sampler}, guidance {by.guidance.weight}")
