"""Pictures -> square crops, as ADM makes them, read and cropped by data workers ahead of the VAE.

Shapes: B images of a batch, side in pixels, RGB uint8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from gsnr.train.prepare.sources import Source

PREPROCESSING = "ADM centre crop to {side}"


def centre_crop(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: ADM's preprocessing (Dhariwal and Nichol 2021): box-halve, bicubic to the short side, crop the centre."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def preprocessing_sha() -> str:
    """SHA-256 of what `centre_crop` makes of a fixed picture: another Pillow, or another rule, shows in it."""
    y, x = np.mgrid[:192, :257]
    pixels = np.stack([x * 7 + y * 3, x * y // 5, x ^ y], axis=-1).astype(np.uint8)
    return hashlib.sha256(centre_crop(Image.fromarray(pixels), 64).tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Crops:
    """A batch. images: those that could be read (B,side,side,3); numbers (B,): which of the source they are; bad: one line for each other."""

    images: NDArray[np.uint8]
    numbers: NDArray[np.int64]
    bad: list[str]


@dataclass(frozen=True, kw_only=True)
class _Cropped(Dataset):
    source: Source
    side: int

    def __getitem__(self, number: int) -> tuple[int, NDArray[np.uint8] | str]:
        """(number, its crop, or what is wrong with it)."""
        try:
            return number, centre_crop(self.source.image(number), self.side)
        except Exception as error:  # decoders raise a dozen kinds for a damaged file
            return number, f"{self.source.name(number)}: not a readable image ({' '.join(str(error).split()) or type(error).__name__})"


def _collate(items: list[tuple[int, NDArray[np.uint8] | str]]) -> Crops:
    good = [(number, x) for number, x in items if not isinstance(x, str)]
    return Crops(
        images=np.stack([x for _, x in good]) if good else np.empty((0, 0, 0, 3), np.uint8),
        numbers=np.array([number for number, _ in good], dtype=np.int64),
        bad=[x for _, x in items if isinstance(x, str)],
    )


def loader(source: Source, side: int, batches: Sequence[NDArray[np.int64]], workers: int) -> DataLoader:
    """Batches of crops in order, read ahead by `workers` processes (0: in place)."""
    numbers = [batch.tolist() for batch in batches]
    return DataLoader(_Cropped(source=source, side=side), batch_sampler=numbers, collate_fn=_collate, num_workers=workers)
