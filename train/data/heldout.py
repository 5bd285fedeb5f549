"""Held-out samples for probes and evaluation: fixed images, noise and relative times, the same for everything that is compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from train.data import draws
from train.data.batches import Batch, assemble
from train.data.cache import Split


def heldout_batches(
    split: Split, images: int, seed: int, stream: str, low: float, high: float, groups: tuple[str, ...], batch: int = 64
) -> Iterator[Batch]:
    """The first `images` held-out images, each once: t = low + (high - low) u, where u, noise and posterior draw are the image's own.

    The same (seed, stream, image) gives the same u and noise in every call, so bins and targets are compared on identical samples.
    Raises ValueError where the split holds fewer images.
    """
    if images > split.size:
        raise ValueError(f"--n-images {images}: the held-out split of {split.header.data!r} has {split.size}")
    for start in range(0, images, batch):
        index = np.arange(start, min(start + batch, images), dtype=np.int64)
        drawn = draws.draw(seed, stream, index, split.header.latent_shape)
        yield assemble(split, index, drawn, low + (high - low) * drawn.u, groups)


def another_image(index_N: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """A fixed-point-free pairing for the shuffled control: image i gets the features of image i + size // 2, cyclically."""
    return (index_N + max(1, size // 2)) % size
