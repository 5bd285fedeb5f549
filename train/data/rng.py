"""The random numbers of one training or probe sample: a pure function of (seed, stream, sample number), whatever the world size.

Every sample has a counter-based generator of its own (Philox, Salmon et al. 2011); its numbers are drawn in one fixed order.
Shapes: N samples, latent (C,h,w).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STREAMS = ("train", "heldout", "fit", "evaluate", "sample", "label", "decode", "control", "sample_extra")  # uses that must not share numbers
EXTRA, CAPTION = 1, 2  # the steps of a sample's generator that the class token's noise and the caption are drawn at; all else is drawn at 0


@dataclass(frozen=True, kw_only=True)
class Draws:
    """u, drop_u, offset_u, flip_u: (N,) float64 uniform in [0, 1) for the time, the label drop, the offset of a teacher's time and the
    choice of a view; posterior, noise: (N,C,h,w) and extra: (N,E) float32 standard normal, E = 0 where there is no class token; caption_u:
    as u, for the choice of a caption, (0,) where there is no text."""

    u: NDArray[np.float64]
    drop_u: NDArray[np.float64]
    offset_u: NDArray[np.float64]
    flip_u: NDArray[np.float64]
    posterior: NDArray[np.float32]
    noise: NDArray[np.float32]
    extra: NDArray[np.float32]
    caption_u: NDArray[np.float64]


def _generator(seed: int, stream: str, sample: int, step: int = 0) -> np.random.Generator:
    key = np.array([seed, STREAMS.index(stream)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, step, sample], dtype=np.uint64)))


def normals(seed: int, stream: str, samples: NDArray[np.int64], step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(N, *shape): standard normal, of one step of each of the given samples."""
    found = np.empty((len(samples), *shape), dtype=np.float32)
    for row, sample in zip(found, samples, strict=True):
        _generator(seed, stream, sample, step).standard_normal(shape, dtype=np.float32, out=row)
    return found


def integers(seed: int, stream: str, samples: NDArray[np.int64], below: int) -> NDArray[np.int64]:
    """(N,): uniform from 0 to `below` - 1."""
    return np.array([_generator(seed, stream, sample).integers(below) for sample in samples], dtype=np.int64)


def draw(seed: int, stream: str, samples: NDArray[np.int64], latent_shape: tuple[int, int, int], extra: int = 0, captions: bool = False) -> Draws:
    """The random numbers of the given samples. extra: channels of the class token; captions: there are some to choose from. The others are the
    same with either and without."""
    uniforms = np.empty((len(samples), 4))
    pair = np.empty((2, len(samples), *latent_shape), dtype=np.float32)
    for row, sample in enumerate(samples):
        rng = _generator(seed, stream, sample)
        uniforms[row, :2] = rng.random(2)
        for which in pair:
            rng.standard_normal(latent_shape, dtype=np.float32, out=which[row])
        uniforms[row, 2:] = rng.random(2)
    u, drop_u, offset_u, flip_u = uniforms.T
    beside = normals(seed, stream, samples, EXTRA, (extra,))
    caption_u = np.array([_generator(seed, stream, sample, CAPTION).random() for sample in samples if captions])
    of_uniform = {"u": u, "drop_u": drop_u, "offset_u": offset_u, "flip_u": flip_u, "caption_u": caption_u}
    return Draws(**of_uniform, posterior=pair[0], noise=pair[1], extra=beside)
