"""Which image a training sample is: one permutation per epoch, computed per index, never held in memory.

A four-round Feistel network over the smallest power of four >= size, walked along its cycle until it lands below size, is a bijection of
range(size) keyed by (seed, epoch) (format-preserving encryption by cycle walking, Black and Rogaway 2002).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsnr.hashing import GOLDEN, scramble

ROUNDS = 4
Index = NDArray[np.int64]


def permute(positions: Index, size: int, seed: int, epoch: int) -> Index:
    """A bijection of range(size), applied to positions in it."""
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    with np.errstate(over="ignore"):
        start = scramble(np.array([seed, epoch], dtype=np.uint64) + GOLDEN)
        keys = scramble(np.arange(1, ROUNDS + 1, dtype=np.uint64) * GOLDEN + start[0] + start[1] * np.uint64(31))
        image = positions.astype(np.uint64)
        todo = np.ones(len(image), dtype=bool)
        while todo.any():
            left, right = image[todo] >> half_bits, image[todo] & mask
            for key in keys:
                left, right = right, left ^ (scramble(right + key) & mask)
            image[todo] = (left << half_bits) | right
            todo = image >= size
    return image.astype(np.int64)


def image_of(sample: Index, size: int, seed: int) -> Index:
    """Image indices of global sample numbers (0, 1, 2, ... over the whole run): epoch = sample // size."""
    result = np.empty_like(sample)
    epochs = sample // size
    for epoch in np.unique(epochs):
        here = epochs == epoch
        result[here] = permute(sample[here] % size, size, seed, int(epoch))
    return result
