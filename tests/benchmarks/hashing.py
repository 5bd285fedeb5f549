"""What checksums add to saving and resuming a checkpoint, as a share of the training between two saves, and to opening a cache.

    python -m tests.benchmarks.hashing                  B/2: about 3 GB of memory and as much disk below --folder
    python -m tests.benchmarks.hashing --size demo --batch 64

Wanted: at most 1 % of training, at most 5 % of opening. With and without turn about, so that other work on the machine meets both; times are
medians over the turns: of saving and resuming by the clock (the trainer's, to the disk and synced), of opening the processor's. Caches are of random
numbers. What opening takes grows with the shards, 128 images each and more, what hashing adds does not: two sizes are measured, the larger with
fewer images a shard than they have, so as to fit the disk.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from gsnr import checksums
from gsnr.benchmarks import clock
from gsnr.train import optimizer, presets
from gsnr.train.config import TrainConfig, alignment_config, resolve
from gsnr.train.costing import counts, steps
from gsnr.train.data import cache
from gsnr.train.loader_benchmark import synthetic_cache
from gsnr.train.prepare import shards
from gsnr.train.runs import training_state

Both = tuple[float, float]  # seconds with and without


@contextmanager
def no_hashing() -> Iterator[None]:
    """What is written gets checksums of nothing, and what is read is not compared."""
    unknown = lambda folder: checksums.Manifest(folder, known=False)
    with mock.patch.object(checksums, "sha256", lambda path: ""), mock.patch.object(checksums.Manifest, "read", unknown):
        yield


def both(work: Callable[[], object], turns: int, now: Callable[[], float] = time.perf_counter) -> Both:
    """Medians of the turns, after one of each that is not counted."""
    spent: tuple[list[float], list[float]] = ([], [])

    def one() -> float:
        start = now()
        work()
        return now() - start

    for _ in range(turns + 1):
        spent[0].append(one())
        with no_hashing():
            spent[1].append(one())
    return statistics.median(spent[0][1:]), statistics.median(spent[1][1:])


def opening(config: TrainConfig, folder: Path, count: int, size: int, turns: int) -> Both:
    """Of a cache of so many shards of the train split, `size` images each."""
    with mock.patch.object(shards, "images_per_shard", lambda images: size):
        synthetic_cache(folder, config, count * size, "int8")
    needs = alignment_config(config.alignment).needs
    return both(lambda: cache.open_cache(folder, needs), turns, time.process_time)


def saving(config: TrainConfig, header: cache.Header, folder: Path, turns: int) -> tuple[Both, Both]:
    """Of a checkpoint of random weights: to save it, and to put it back."""
    objective = counts.objective_of(config, "cpu")
    ema, adamw = copy.deepcopy(objective), optimizer.make(objective, config.optim)
    for parameter in objective.parameters():
        zeros = (torch.zeros_like(parameter) for _ in range(2))
        adamw.state[parameter] = {"step": torch.tensor(1.0), **dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True))}
    (folder / "checkpoints").mkdir(parents=True)

    def save() -> Path:
        return training_state.save(folder, step=1, objective=objective, ema=ema, optimizer=adamw, config=config, header=header, extra={})

    saved = both(save, turns)
    at = save()
    return saved, both(lambda: training_state.restore(at, objective, ema, adamw), turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="b2", help=f"{', '.join(presets.SIZES)} or demo")
    parser.add_argument("--batch", type=int, default=4, help="samples of the step that is timed; training's are 256")
    parser.add_argument("--shards", type=int, default=128, help="of the larger cache that is opened")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where checkpoint and cache are put for the while (default: the system's)")
    options = parser.parse_args()
    config = resolve(presets.at("ahpa", options.size))
    with tempfile.TemporaryDirectory(prefix="gsnr-hashing-", dir=options.folder) as name:
        folder = Path(name)
        opened = {n: opening(config, folder / f"cache{n}", n, size, 40 * options.turns) for n, size in ((4, 128), (options.shards, 4))}
        saved, restored = saving(config, cache.read_header(folder / "cache4"), folder / "run", options.turns)
    step = steps.stepper(config, options.batch)
    one = min(clock.seconds(step) for _ in range(3))
    added, every = max(0.0, saved[0] - saved[1]), config.save_every
    print(f"saving {options.size}: {saved[0]:.2f} s, {saved[1]:.2f} s without hashing; a step of {options.batch} samples takes {one:.2f} s")
    print(f"  {100 * added / (every * one):.4f} % of the {every} steps between two saves; 1 % if a step took {100_000 * added / every:.2f} ms")
    print(f"resuming {options.size}: {restored[0]:.2f} s, {restored[1]:.2f} s without")
    for count, (hashed, plain) in opened.items():
        print(f"opening {count} shards: {1000 * hashed:.2f} ms, {1000 * plain:.2f} ms without: {100 * (hashed / plain - 1):.1f} % more")


if __name__ == "__main__":
    main()
