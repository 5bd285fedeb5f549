"""The random numbers of one training or probe sample: a pure function of (seed, stream, sample number), whatever the world size.

Every sample has a counter-based generator of its own (Philox, Salmon et al. 2011); its numbers are drawn in one fixed order.
Shapes: N samples, latent (C,h,w).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STREAMS = ("train", "heldout", "fit", "evaluate")  # uses that must not share numbers


@dataclass(frozen=True, kw_only=True)
class Draws:
    """u, drop_u, offset_u, flip_u: (N,) float64 uniform in [0, 1) for the time, the label drop, the offset of a teacher's time and the
    choice of a view; posterior, noise: (N,C,h,w) float32 standard normal."""

    u: NDArray[np.float64]
    drop_u: NDArray[np.float64]
    offset_u: NDArray[np.float64]
    flip_u: NDArray[np.float64]
    posterior: NDArray[np.float32]
    noise: NDArray[np.float32]


def draw(seed: int, stream: str, samples: NDArray[np.int64], latent_shape: tuple[int, int, int]) -> Draws:
    """The random numbers of the given samples."""
    key = np.array([seed, STREAMS.index(stream)], dtype=np.uint64)
    uniforms = np.empty((len(samples), 4))
    normals = np.empty((2, len(samples), *latent_shape), dtype=np.float32)
    for row, sample in enumerate(samples):
        rng = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, sample], dtype=np.uint64)))
        uniforms[row, :2] = rng.random(2)
        for which in normals:
            rng.standard_normal(latent_shape, dtype=np.float32, out=which[row])
        uniforms[row, 2:] = rng.random(2)
    u, drop_u, offset_u, flip_u = uniforms.T
    return Draws(u=u, drop_u=drop_u, offset_u=offset_u, flip_u=flip_u, posterior=normals[0], noise=normals[1])
