"""Held-out samples for probes and evaluation: fixed images, noise and relative times, the same for everything that is compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gsnr.train.data import rng
from gsnr.train.data.batches import Batch, assemble
from gsnr.train.data.cache import Split

REPEAT = 1 << 40  # sample numbers of an image's second, third, ... draw lie this far apart


def require(split: Split, images: int, first: int = 0) -> None:
    """Raises ValueError where the split holds fewer images."""
    if first + images > split.size:
        after = f" after --first-image {first}" if first else ""
        raise ValueError(f"--n-images {images}{after}: the held-out split of {split.header.data!r} has {split.size}")


def heldout_batches(
    split: Split,
    images: int,
    seed: int,
    stream: str,
    low: float,
    high: float,
    groups: tuple[str, ...],
    batch: int = 64,
    repeats: int = 1,
    shuffled: bool = False,
    first: int = 0,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """(image numbers, batch) over `images` held-out images from number `first` on: t = low + (high - low) u; u, noise and posterior draw are the
    image's own.

    `repeats` rows an image, one after another, differ in u, noise and posterior draw. The same (seed, stream, image, repeat) gives the same
    numbers in every call, so bins and targets are compared on identical samples.
    `shuffled`: `another_image` with its own noise, at the same t. (A target made of a noised latent that shared its noise with the sample
    would be no target of another image.)

    Raises ValueError where the split holds fewer images.
    """
    require(split, images, first)
    together = max(1, batch // repeats)
    for start in range(first, first + images, together):
        index = np.repeat(np.arange(start, min(start + together, first + images), dtype=np.int64), repeats)
        numbers = index + REPEAT * np.tile(np.arange(repeats), len(index) // repeats)
        drawn = rng.draw(seed, stream, numbers, split.header.latent_shape)
        t_N = low + (high - low) * drawn.u
        if not shuffled:
            yield index, assemble(split, index, drawn, t_N, groups, mirror=False)
            continue
        other = another_image(index, split.size)
        others = rng.draw(seed, stream, other + (numbers - index), split.header.latent_shape)
        yield index, assemble(split, other, others, t_N, groups, mirror=False)


def choose(images: int, heldout: int) -> dict[str, NDArray[np.int64]]:
    """split -> numbers of its images, ascending: `heldout` of them drawn at random (always the same), since data are often sorted by class."""
    permutation = np.random.default_rng(0).permutation(images)
    return {"train": np.sort(permutation[heldout:]), "heldout": np.sort(permutation[:heldout])}


def another_image(index_N: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """A fixed-point-free pairing for the shuffled control: image i gets the features of image i + size // 2, cyclically."""
    return (index_N + max(1, size // 2)) % size
