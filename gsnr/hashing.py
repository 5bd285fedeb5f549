"""What a sample's sign and choice follow from: a 64-bit key of its identity, never its place. Importable without torch.

Keys are uint64 (n,) and look random: the lowest bit is the sign, the order of the keys chooses samples. See `gsnr.identity` for where keys come from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: the step of splitmix64


def scramble(x: Keys) -> Keys:
    """splitmix64's finaliser: a bijection of 64-bit numbers and a good hash, vectorised."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(number: NDArray[np.int64]) -> Keys:
    """The keys of numbered samples: splitmix64's output at these places."""
    with np.errstate(over="ignore"):
        return scramble((number.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def signs_of(key_n: Keys) -> NDArray[np.float64]:
    """(n,) +-1: the lowest bit."""
    return np.where(key_n & np.uint64(1), 1.0, -1.0)


def smallest(key_n: Keys, count: int) -> Keys:
    """The `count`-th smallest key (the largest of all where there are fewer), as an array of one; empty for none. Keys up to it are chosen,
    so samples that share a key are chosen together, in whatever order they come."""
    return np.sort(key_n)[:count][-1:]
