"""Held-out samples for probes and evaluation: fixed images, noise and relative times, the same for everything that is compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gsnr.train.data.batches import Batch, assemble, draw
from gsnr.train.data.cache import Split

REPEAT = 1 << 40  # sample numbers of an image's second, third, ... draw lie this far apart
ORDER = 1  # seed of the order in which images are taken; a constant, so that "the first n images" are the same for every seed of a probe


def order(size: int) -> NDArray[np.int64]:
    """(size,): the image numbers of a split in the fixed random order in which "the first n images" are counted: data are often sorted by class."""
    return np.random.default_rng(ORDER).permutation(size)


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
    partner_N: NDArray[np.int64] | None = None,
    first: int = 0,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """(image numbers, batch) over `images` held-out images from place `first` of `order` on: t = low + (high - low) u; u, noise and posterior draw
    are the image's own.

    `repeats` rows an image, one after another, differ in u, noise and posterior draw. The same (seed, stream, image, repeat) gives the same
    numbers in every call, so bins and targets are compared on identical samples.
    `partner_N`: image -> another one, as `partners` gives them: it comes in the image's place with its own noise, at the same t. (A target made of
    a noised latent that shared its noise with the sample would be no target of another image.)

    Raises ValueError where the split holds fewer images.
    """
    require(split, images, first)
    together, chosen = max(1, batch // repeats), order(split.size)[first : first + images]
    for start in range(0, images, together):
        index = np.repeat(chosen[start : start + together], repeats)
        numbers = index + REPEAT * np.tile(np.arange(repeats), len(index) // repeats)
        drawn = draw(split, seed, stream, numbers, groups)
        t_N = low + (high - low) * drawn.u
        if partner_N is None:
            yield index, assemble(split, index, drawn, t_N, groups, mirror=False)
            continue
        other = partner_N[index]
        others = draw(split, seed, stream, other + (numbers - index), groups)
        yield index, assemble(split, other, others, t_N, groups, mirror=False)


def choose(images: int, heldout: int) -> dict[str, NDArray[np.int64]]:
    """split -> numbers of its images, ascending: `heldout` of them drawn at random (always the same), since data are often sorted by class."""
    permutation = np.random.default_rng(0).permutation(images)
    return {"train": np.sort(permutation[heldout:]), "heldout": np.sort(permutation[:heldout])}


def partners(size: int, seed: int, labels_N: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(size,): image -> another image, for the shuffled control: a random cycle through all of them, so that no image is its own partner (but a
    lone one) and each is the partner of one. Sorted or periodic data make no difference.

    labels_N: the partner is of the same class; an image that is alone in its class is paired with the other lone ones."""
    places = np.random.default_rng((seed, 2)).permutation(size)
    classes = np.zeros(size, np.int64)
    if labels_N is not None:
        _, classes, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
        classes = np.where(counts[classes] == 1, -1, classes)
    grouped = places[np.argsort(classes[places], kind="stable")]
    partner = np.empty(size, np.int64)
    for members in np.split(grouped, np.flatnonzero(np.diff(classes[grouped])) + 1):
        partner[members] = np.roll(members, -1)
    return partner
