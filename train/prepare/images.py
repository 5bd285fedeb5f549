"""Pictures -> square crops, as ADM or U-ViT makes them, read and cropped by data workers ahead of the VAE.

Shapes: B images of a batch, side in pixels, RGB uint8.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, Dataset

from gsnr.train import children
from gsnr.train.prepare.contents import Content, content_of
from gsnr.train.prepare.modes import RULES, rgb
from gsnr.train.prepare.sources import Source

LONGEST = 16  # times the short side: of longer pictures only the part that is kept is resized, so that memory is bounded


def centre_crop(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: ADM's preprocessing (Dhariwal and Nichol 2021): box-halve, bicubic to the short side, crop the centre.

    Of a picture longer than LONGEST the centre alone is resized: the same but for rounding and clipping between Pillow's
    two passes. Raises ValueError for a mode that is refused."""
    image = rgb(image)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - side) // 2, (height - side) // 2
    if max(width, height) > LONGEST * side:
        x, y = image.width / width, image.height / height
        kept = (left * x, top * y, min((left + side) * x, image.width), min((top + side) * y, image.height))
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=kept))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def lanczos_crop(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: U-ViT's preprocessing of MS-COCO (Bao et al. 2023): the centre square, by Lanczos. Raises ValueError as above."""
    image = rgb(image)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return np.asarray(image.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.LANCZOS))


CROPS = {"adm": centre_crop, "lanczos": lanczos_crop}
NAMES = {"adm": "ADM centre crop", "lanczos": "centre square, by Lanczos,"}


def preprocessing(side: int, crop: str) -> str:
    """In words."""
    return f"{NAMES[crop]} to {side}; {RULES}"


def _fixed() -> list[Image.Image]:
    """A picture in several modes, and a strip of it."""
    y, x = np.mgrid[:192, :257]
    colour = Image.fromarray(np.stack([x * 7 + y * 3, x * y // 5, x ^ y], axis=-1).astype(np.uint8))
    x, y = x[:66, :80], y[:66, :80]
    small = colour.crop((0, 0, 80, 66))
    alpha, turned = small.copy(), small.copy()
    alpha.putalpha(Image.fromarray((3 * x + y).astype(np.uint8)))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    deep = [Image.fromarray((9 * x * y).astype(kind)) for kind in (np.uint16, np.int32)]
    deep.append(Image.fromarray((x / 80).astype(np.float32)))
    return [colour, *(small.convert(mode) for mode in ("L", "P", "CMYK")), alpha, turned, *deep, colour.crop((0, 0, 257, 8))]


@cache
def preprocessing_sha(crop: str = "adm") -> str:
    """SHA-256 of what a crop makes of fixed pictures: another Pillow, or another rule, shows in it."""
    return hashlib.sha256(b"".join(CROPS[crop](picture, 64).tobytes() for picture in _fixed())).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A batch. images: those that could be read (B,side,side,3); numbers (B,): which of the source they are; bad: one line for each other;
    contents: of all of them."""

    images: NDArray[np.uint8]
    numbers: NDArray[np.int64]
    bad: list[str]
    contents: list[Content]


@dataclass(frozen=True, kw_only=True)
class _Cropped(Dataset):
    source: Source
    side: int
    crop: str

    def __getitem__(self, number: int) -> tuple[Content, NDArray[np.uint8] | str]:
        """(what the picture is, its crop, or what is wrong with it)."""
        content = content_of(self.source, number)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as many pixels raise
                return content, CROPS[self.crop](self.source.image(number), self.side)
        except Exception as error:  # decoders raise a dozen kinds for a damaged file
            return content, f"{self.source.name(number)}: not a readable image ({' '.join(str(error).split()) or type(error).__name__})"


def _collate(items: list[tuple[Content, NDArray[np.uint8] | str]]) -> Crops:
    good = [(content.number, x) for content, x in items if not isinstance(x, str)]
    return Crops(
        images=np.stack([x for _, x in good]) if good else np.empty((0, 0, 0, 3), np.uint8),
        numbers=np.array([number for number, _ in good], dtype=np.int64),
        bad=[x for _, x in items if isinstance(x, str)],
        contents=[content for content, _ in items],
    )


def loader(source: Source, side: int, batches: Sequence[NDArray[np.int64]], workers: int, crop: str = "adm") -> DataLoader:
    """Batches of crops in order, read ahead by `workers` processes (0: in place)."""
    numbers = [batch.tolist() for batch in batches]
    cropped = _Cropped(source=source, side=side, crop=crop)
    return DataLoader(cropped, batch_sampler=numbers, collate_fn=_collate, num_workers=workers, worker_init_fn=children.bind_worker)
