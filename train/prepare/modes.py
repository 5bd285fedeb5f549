"""A picture of any of Pillow's modes -> RGB, 8 bits, upright. What has no stated range is refused, not clipped.

    orientation          as EXIF says
    16 bits a channel    the high byte (grey: here; colour: Pillow's decoders)
    32-bit integers      taken as 16 bits; refused below 0 and above 65535
    floats               [0, 1] times 255, rounded; all others refused
    alpha                over white, as a page shows it: what lies under transparent pixels is arbitrary, often black
    palette, CMYK, ...   by Pillow; colour profiles are not applied
    several frames       the first

Shapes: (H,W) pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

RULES = "EXIF orientation applied, alpha over white, 16 bits by the high byte, floats of [0, 1] times 255"
DEPTHS = {"I;16": 16, "I;16L": 16, "I;16B": 16, "I;16N": 16, "I": 32, "F": 32}  # modes of more than 8 bits: bits a pixel


def _eight_bits(values_HW: NDArray) -> NDArray[np.uint8]:
    """Raises ValueError for values whose range nothing tells."""
    low, high = values_HW.min(), values_HW.max()
    if values_HW.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # nan as well
            raise ValueError(f"floats from {low:.6g} to {high:.6g}; only those of [0, 1] are read: save it so, or in 8 bits")
        return np.rint(values_HW * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"integers from {low} to {high}; only those of 8 and 16 bits are read: save it so")
    if 0 < high <= 255:
        raise ValueError(f"16 bits a pixel, but none above {high}: black, or 8 bits in disguise; save it in 8 bits")
    return (values_HW >> 8).astype(np.uint8)


def _deep(image: Image.Image, tags: Mapping[int, object]) -> Image.Image:
    """Mode L of one of DEPTHS. tags: of a TIFF. Raises ValueError for what has no stated range."""
    bits = tags.get(ExifTags.Base.BitsPerSample, DEPTHS[image.mode])
    if bits != DEPTHS[image.mode]:
        raise ValueError(f"{bits} bits a pixel, signed or of an odd number; save it in 8 or 16 bits")
    if "transparency" in image.info:
        raise ValueError("16 bits a pixel and a transparent grey; save it with an alpha channel, or in 8 bits")
    grey = Image.fromarray(_eight_bits(np.asarray(image)))
    return ImageOps.invert(grey) if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else grey  # 0: white is 0


def rgb(image: Image.Image) -> Image.Image:
    """See above. Raises ValueError for what is refused, and whatever the decoder raises."""
    image.load()
    exif = image.getexif()
    upright = ImageOps.exif_transpose(image) if exif.get(ExifTags.Base.Orientation, 1) != 1 else image
    if upright.mode in DEPTHS:
        upright = _deep(upright, exif if image.format == "TIFF" else {})
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("RGB")
