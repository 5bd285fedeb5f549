"""The batch of training step s: a pure function of (seed, s), whatever the world size and the number of workers.

Sample number j of the run is image `permutation.image_of(j)` with the random numbers of j; step s holds samples s*B .. (s+1)*B - 1, of
which each rank takes a slice. Keys of a batch: latent (final latents), noise (B,C,h,w) float32; t, offset_u (B,) float32; label (B,) int64;
label_drop (B,) bool; one entry a feature group, (B,L,C,g,g) float16; extra_noise (B,C) float32 where the class token's is among these; picture
(B,H,W,3) uint8, and text (B,L,C) float32, the states of the sample's caption, where they are asked for.

Where samples are K views of an image, sample j is of image j // K, noise, t, offset_u and extra_noise are (B,K,...), and the rest is the image's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from gsnr.train import children
from gsnr.train.config import CLASS_TOKEN, TEXT
from gsnr.train.data import permutation, rng
from gsnr.train.data.cache import IMAGE, Split

Batch = dict[str, torch.Tensor]
PICTURE = "picture"  # entry of a batch: the cache's column IMAGE


def draw(split: Split, seed: int, stream: str, numbers_N: NDArray[np.int64], groups: tuple[str, ...]) -> rng.Draws:
    """The random numbers of these samples; the class token's noise, and the choice of a caption, where they are among the groups."""
    extra = split.header.groups[CLASS_TOKEN][1] if CLASS_TOKEN in groups else 0
    return rng.draw(seed, stream, numbers_N, split.header.latent_shape, extra, TEXT in groups)


def assemble(
    split: Split, index_N: NDArray[np.int64], drawn: rng.Draws, t_N: NDArray[np.float64], groups: tuple[str, ...], mirror: bool = True
) -> Batch:
    """Rows of the cache and their random numbers -> one batch; no label dropped. Raw latent = mean + std * posterior noise.

    Where the cache holds two views an image, the sample's flip_u chooses; without `mirror` it is the first, which is not mirrored.
    """
    view = (drawn.flip_u < 0.5).astype(np.int64) if mirror and split.header.views == 2 else 0
    columns = tuple(name for name in groups if name != TEXT)
    rows = split.take(index_N, ("mean", "std", "label", *columns), view)
    latent = split.header.scaling.final(rows["mean"] + rows["std"] * drawn.posterior)
    arrays = {"latent": latent, "noise": drawn.noise, "t": t_N.astype(np.float32), "label": rows["label"]}
    arrays["offset_u"] = drawn.offset_u.astype(np.float32)
    arrays |= {PICTURE if name == IMAGE else name: rows[name] for name in columns}
    arrays |= {TEXT: split.texts(index_N, drawn.caption_u)} if TEXT in groups else {}
    arrays |= {"extra_noise": drawn.extra} if CLASS_TOKEN in groups else {}
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


OF_A_VIEW = ("t", "noise", "offset_u", "extra_noise")  # the entries of a batch that differ between the views of an image


def as_views(batch: Batch, views: int) -> Batch:
    """Rows of which `views` at a time are of one image -> a batch of images; what views share is that of the first."""
    if views == 1:
        return batch
    return {key: x.unflatten(0, (-1, views)) if key in OF_A_VIEW else x[::views] for key, x in batch.items()}


def flattened(batch: Batch) -> Batch:
    """A batch of images with views -> one row a view, of what a model reads; any other as it is."""
    if batch["t"].dim() == 1:
        return batch
    shape = batch["t"].shape
    read = {key: batch[key] for key in ("latent", "label", "label_drop", CLASS_TOKEN, TEXT) if key in batch}
    repeated = {key: x.unsqueeze(1).expand(*shape, *x.shape[1:]).flatten(0, 1) for key, x in read.items()}
    return repeated | {key: batch[key].flatten(0, 1) for key in ("t", "noise", "extra_noise") if key in batch}


@dataclass(frozen=True, kw_only=True)
class StepBatches(Dataset):
    """`self[s]` is this rank's part of step s. groups: what the alignment reads, before step `until` (None: in all of them); always: what the model
    itself reads. views: of an image; the batch counts views.

    Raises ValueError for a world size, or views, that do not divide the batch."""

    split: Split
    groups: tuple[str, ...]
    batch: int
    seed: int
    label_dropout: float
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    until: int | None = None
    views: int = 1
    always: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch % (self.world * self.accumulate):
            parts = f" times --accumulate {self.accumulate}" if self.accumulate > 1 else ""
            raise ValueError(f"--batch {self.batch} is not a multiple of the {self.world} processes{parts}")
        if (share := self.batch // (self.world * self.accumulate)) % self.views:
            raise ValueError(f"--batch {self.batch}: {share} at once are not a multiple of the {self.views} views of an image (--alignment.views)")

    def __getitem__(self, step: int) -> Batch:
        local = self.batch // self.world
        samples = step * self.batch + self.rank * local + np.arange(local, dtype=np.int64)
        groups = tuple(dict.fromkeys((*(self.groups if self.until is None or step < self.until else ()), *self.always)))
        drawn = draw(self.split, self.seed, "train", samples, groups)
        batch = assemble(self.split, permutation.image_of(samples // self.views, self.split.size, self.seed), drawn, drawn.u, groups)
        return as_views(batch | {"label_drop": torch.from_numpy(drawn.drop_u < self.label_dropout)}, self.views)


def loader(
    batches: StepBatches, first: int, last: int, workers: int, begin: Callable[[int], None] = children.bind_worker
) -> Generator[Batch, None, None]:
    """Batches of steps first .. last-1 in order, prefetched by `workers` processes (0: made in place). begin: what each of them does first.

    At the end, or when it is closed, the processes end; one that is stuck is killed. Raises ValueError naming damaged data."""
    steps, pinned = range(first, last), torch.cuda.is_available()
    reading = iter(DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pinned, worker_init_fn=begin))
    try:
        yield from reading
    except ValueError as error:
        caught = re.match(r"Caught (\w+) in DataLoader", str(error))
        if caught is None:
            raise
        raise ValueError(re.split(rf"^[\w.]*{caught[1]}: ", str(error), flags=re.MULTILINE)[-1].strip()) from error
    finally:
        if workers:
            _end(reading)


def reading(
    batches: StepBatches, first: int, last: int, workers: int, begin: Callable[[int], None], ends: Callable[[], int | None]
) -> Generator[Batch, None, None]:
    """As `loader`, where the first step that reads no features may only be known later. ends: what is known of it; where that changes, the
    processes are started anew, once, with the step that comes next."""
    while first < last:
        until = ends()
        with closing(loader(replace(batches, until=until), first, last, workers, begin)) as part:
            for batch in part:
                first += 1
                yield batch
                if ends() != until:
                    break


def _end(reading: Any) -> None:
    """Torch asks its processes to end, waits five seconds for each and sends SIGTERM, which those of a training ignore: python would then wait for
    one that is stuck for as long as it is."""
    reading._shutdown_workers()
    for process in reading._workers:
        if process.is_alive():
            process.kill()
