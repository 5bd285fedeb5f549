"""The demo data set: handwritten digits over photographs, 64x64, ten classes, offline.

Digits are scikit-learn's 1 797 bundled 8x8 scans, photographs its two bundled pictures (`china.jpg`, `flower.jpg`). What the
label says (identity, size, place of the digit) is coarse; the photographic texture behind it is fine: the contrast that a
hierarchy of alignment targets is about. The train and the held-out split share no scan and no pixel of the photographs: every
held-out image has a scan of its own, and each photograph is cut into tiles that belong to one split or the other.

Shapes: N images, H = W = 64, C = 3 (RGB, uint8).
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np
from PIL import Image

RESOLUTION = 64
NUM_CLASSES = 10
SPLITS = ("train", "heldout")
N_HELDOUT_SCANS = 512
# Each photograph is cut into a chequerboard of tiles, alternately train and held-out, so that both splits see sky, roofs, leaves and petals
# in equal parts: a held-out mean that differs from the train mean would look like signal in every probe.
TILE_COLUMNS, TILE_ROWS = 8, 5
VERSION = 1  # part of the hash that names a cache: raise it when an image of the same (split, seed, index) changes


@lru_cache(maxsize=1)
def _all_scans() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """split -> (scans (n,8,8) float in 0..1, labels (n,) int64); one fixed shuffle, whatever the seed of the images."""
    from sklearn.datasets import load_digits  # here, since it takes half a second, and a cache that is there needs none

    digits = load_digits()
    permutation = np.random.default_rng(0).permutation(len(digits.target))
    scans, labels = digits.images[permutation] / 16.0, digits.target[permutation].astype(np.int64)
    return {
        "heldout": (scans[:N_HELDOUT_SCANS], labels[:N_HELDOUT_SCANS]),
        "train": (scans[N_HELDOUT_SCANS:], labels[N_HELDOUT_SCANS:]),
    }


@lru_cache(maxsize=1)
def _photo_regions() -> dict[str, list[Image.Image]]:
    """split -> the tiles of the two photographs that it may crop from; no pixel is in both."""
    from sklearn.datasets import load_sample_image

    regions: dict[str, list[Image.Image]] = {split: [] for split in SPLITS}
    for photo, name in enumerate(("china.jpg", "flower.jpg")):
        for row, strip in enumerate(np.array_split(load_sample_image(name), TILE_ROWS, axis=0)):
            for column, tile in enumerate(np.array_split(strip, TILE_COLUMNS, axis=1)):
                regions[SPLITS[(row + column + photo) % 2]].append(Image.fromarray(tile))
    return regions


def _background_HWC(split: str, rng: np.random.Generator) -> np.ndarray:
    """A square crop of 40 to 80 pixels of one tile, perhaps mirrored, resized to 64x64 and dimmed so that the digit stands out. Float, 0..1."""
    regions = _photo_regions()[split]
    photo = regions[rng.integers(len(regions))]
    side = int(rng.integers(40, 81))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    crop = photo.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, dtype=np.float64) / 255.0
    return (pixels[:, ::-1] if rng.random() < 0.5 else pixels) * 0.7


def _compose_HWC(scan: np.ndarray, split: str, rng: np.random.Generator) -> np.ndarray:
    """One image: a scan of 36 to 52 pixels, tinted, anywhere on a background. uint8."""
    pixels = _background_HWC(split, rng)
    size = int(rng.integers(36, 53))
    stroke = Image.fromarray(scan.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    alpha = np.clip((np.asarray(stroke, dtype=np.float64) - 0.25) / 0.5, 0.0, 1.0)[..., None]
    top, left = rng.integers(RESOLUTION - size + 1, size=2)
    tint = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.5), rng.uniform(0.9, 1.0)))
    window = pixels[top : top + size, left : left + size]
    window[:] = (1 - alpha) * window + alpha * tint
    return np.round(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)


def images(split: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first `n` images of a split: (images (n,64,64,3) uint8, labels (n,) int64), a pure function of (split, n, seed).

    The first n of a longer call are the same images. Train scans come round again over other backgrounds; held-out scans never do.

    Raises ValueError for an unknown split, n < 1, or more held-out images than there are held-out scans.
    """
    check(split, n)
    found, labels = scans(split)
    which = np.arange(n) % len(found)
    stream = SPLITS.index(split)
    composed = [_compose_HWC(found[j], split, np.random.default_rng([seed, stream, i])) for i, j in enumerate(which)]
    return np.stack(composed), labels[which]


def scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(scans (n,8,8) float in 0..1, labels (n,) int64) of a split."""
    return _all_scans()[split]


def check(split: str, n: int) -> None:
    """Raises ValueError for what `images` cannot give."""
    if split not in SPLITS:
        raise ValueError(f"demo split {split!r} does not exist; choose from {', '.join(SPLITS)}")
    if n < 1:
        raise ValueError(f"demo data: n must be at least 1, not {n}")
    if split == "heldout" and n > N_HELDOUT_SCANS:
        raise ValueError(f"demo data: {n} held-out images asked for, {N_HELDOUT_SCANS} exist (each has a digit of its own)")
