"""The demo's images with captions: one handwritten digit on a plain background, 64x64, offline.

Digits are the scans of `gsnr.train.demo.images`, and the splits share none. The train split has no digit in its withheld colour; of the held-out
images every other one has. Shapes: N images, H = W = 64, C = 3 (RGB, uint8), A attributes.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsnr.train.demo import images as demo
from gsnr.train.demo.captions import VALUES, WITHHELD, Attributes

RESOLUTION = demo.RESOLUTION
STREAM = 23  # apart from the numbers of `images`
VERSION = 1  # part of the hash that names a cache: raise it when an image or caption of the same (split, seed, index) changes
SIDES = {"small": (26, 28), "large": (38, 40)}  # pixels, from and to
MARGIN, DRIFT = 1, 3  # pixels between a digit's square and the border, and how far the square may lie from its place
HUES = {"red": 0.0, "green": 0.36, "blue": 0.6}  # of HSV, in turns; white has none
SATURATION, VALUE, TURN = (0.45, 0.52), (0.92, 1.0), 0.02  # the demo's VAE has seen digits of saturation up to 0.5
LEVELS = {"black": (0.0, 0.05), "grey": (0.48, 0.54)}
GREY = (1.0, 1.1, 1.2)  # of red, green and blue: the sky of its photographs, for it makes an even grey orange


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """images (N,64,64,3) uint8, and what each shows."""

    images: NDArray[np.uint8]
    attributes: tuple[Attributes, ...]

    @property
    def captions(self) -> list[tuple[str, ...]]:
        return [shown.captions for shown in self.attributes]

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(N,A): `Attributes.numbers`."""
        return np.array([shown.numbers for shown in self.attributes], dtype=np.int64)


def _colour(digit: str, index: int, split: str, every: bool, rng: np.random.Generator) -> str:
    others = [colour for colour in VALUES["colour"] if every or colour != WITHHELD[digit]]
    drawn = others[rng.integers(len(others))]
    return WITHHELD[digit] if split == "heldout" and index % 2 and not every else drawn


def _tint(colour: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """RGB in 0..1."""
    hue, saturation, value = rng.uniform(-TURN, TURN), rng.uniform(*SATURATION), rng.uniform(*VALUE)
    white = colour == "white"
    return np.array(colorsys.hsv_to_rgb(0.0 if white else (HUES[colour] + hue) % 1.0, 0.0 if white else saturation, value))


def _corner(place: str, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a square of that side."""
    rows = {"top": MARGIN, "centre": (RESOLUTION - side) // 2, "bottom": RESOLUTION - MARGIN - side}
    row, column = place.split()
    down, across = rng.integers(DRIFT + 1, size=2)
    top = rows[row] + {"top": down, "centre": down - DRIFT // 2, "bottom": -down}[row]
    left = MARGIN + across if column == "left" else RESOLUTION - MARGIN - side - across
    return int(top), int(left)


def _compose_HWC(scan: NDArray[np.float64], shown: Attributes, rng: np.random.Generator) -> NDArray[np.uint8]:
    pixels = np.full((RESOLUTION, RESOLUTION, 3), rng.uniform(*LEVELS[shown.background])) * (GREY if shown.background == "grey" else 1.0)
    least, most = SIDES[shown.size]
    side = int(rng.integers(least, most + 1))
    stroke = Image.fromarray(scan.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    alpha = np.clip((np.asarray(stroke, dtype=np.float64) - 0.25) / 0.5, 0.0, 1.0)[..., None]
    tint = _tint(shown.colour, rng)
    top, left = _corner(shown.place, side, rng)
    window = pixels[top : top + side, left : left + side]
    window[:] = (1 - alpha) * window + alpha * tint
    return np.round(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)


def images(split: str, n: int, seed: int = 0, every: bool = False) -> Captioned:
    """The first `n` images of a split, each a pure function of (split, seed, its number). every: also withheld combinations in the train split,
    and all alike in the held-out one, which is what a classifier of attributes is fitted and measured on.

    Raises ValueError as `gsnr.train.demo.images.images` does.
    """
    demo.check(split, n)
    scans, labels = demo.scans(split)
    composed, attributes = [], []
    for index in range(n):
        rng = np.random.default_rng([seed, STREAM, demo.SPLITS.index(split), index])
        digit = VALUES["digit"][labels[index % len(labels)]]
        size, place, background = (VALUES[name][rng.integers(len(VALUES[name]))] for name in ("size", "place", "background"))
        colour = _colour(digit, index, split, every, rng)
        attributes.append(Attributes(digit=digit, size=size, colour=colour, place=place, background=background))
        composed.append(_compose_HWC(scans[index % len(scans)], attributes[-1], rng))
    return Captioned(images=np.stack(composed), attributes=tuple(attributes))
