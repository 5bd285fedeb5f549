"""Captions of pictures, read from COCO's annotations or from text files, and what of them lies in a cache.

    FILE.json     COCO's annotations (`gsnr.train.data.coco`); images, below DATA, come in the order of their ids
    txt           NAME.txt beside each picture NAME.png, anywhere below DATA: a caption a line

Captions are kept in the order of the file, with single spaces between words; blank ones are none. N: images, K: most captions of one, (L,C): states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gsnr.train.config import TEXT
from gsnr.train.data import coco
from gsnr.train.data.cache import CAPTION, COUNT, Rows
from gsnr.train.prepare.sources import SUFFIXES, Files

if TYPE_CHECKING:
    from gsnr.train.text import FrozenText

BESIDE = "txt"  # --captions: files beside the pictures
Texts = list[tuple[str, ...]]  # of each image


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Those of all images of a source, and what encodes them. Every image has one at least."""

    texts: Sequence[tuple[str, ...]]
    encoder: FrozenText

    @property
    def most(self) -> int:
        """K."""
        return max(map(len, self.texts))

    @property
    def sha(self) -> str:
        """SHA-256 of all of them, in order."""
        return hashlib.sha256(json.dumps([list(some) for some in self.texts]).encode()).hexdigest()

    @cached_property
    def too_long(self) -> list[str]:
        """Those that the encoder cuts off."""
        every = [caption for some in self.texts for caption in some]
        return [every[k] for k in self.encoder.too_long(every)]

    def in_header(self, views: int) -> dict[str, Any]:
        """The fields of a cache's header on its text. Raises ValueError for mirrored views."""
        if views > 1:
            raise ValueError("--flip: a mirrored image has other captions (left and right); leave it out with --captions")
        named = {"text_encoder": self.encoder.name, "text_sha": self.encoder.sha}
        return {"text_shape": self.encoder.shape, "captions": self.most, "truncated_captions": len(self.too_long), **named}

    def null_text(self) -> NDArray[np.float32]:
        """(L,C): the states of the empty caption."""
        return self.encoder.encode([""])[0].cpu().numpy()

    def rows(self, numbers_N: NDArray[np.int64]) -> Rows:
        """Columns of these images: COUNT (N,), CAPTION (N,) tuples of strings, TEXT (N,K,L,C) float16. Raises ValueError naming a caption whose
        states exceed float16."""
        some = [self.texts[number] for number in numbers_N]
        counts_N = np.array([len(captions) for captions in some], dtype=np.int64)
        every = [caption for captions in some for caption in captions]
        states = self.encoder.encode(every).half()
        finite = states.isfinite().all(-1).all(-1)
        if not finite.all():
            raise ValueError(f"--text-encoder {self.encoder.name}: states exceed float16 for {every[int(finite.int().argmin())]!r}")
        starts_N = np.cumsum(counts_N) - counts_N
        places_NK = starts_N[:, None] + np.arange(self.most) % counts_N[:, None]
        strings = np.empty(len(some), dtype=object)
        strings[:] = some
        return {COUNT: counts_N, CAPTION: strings, TEXT: states.cpu().numpy()[places_NK]}


def _beside(folder: Path) -> dict[str, list[str]]:
    """Picture -> the lines of the text file of its name. Raises ValueError naming a file that is no text."""
    pictures = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    captions: dict[str, list[str]] = {}
    for name in pictures:
        path = (folder / name).with_suffix(".txt")
        try:
            captions[name] = [coco.spaced(line) for line in path.read_text(encoding="utf-8-sig").splitlines()] if path.is_file() else []
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from error
    return captions


def open_captioned(data: str, how: str, skip: bool) -> tuple[Files, Texts, list[str]]:
    """(the pictures, captions of each, names of those that were left out for they have none). how: --captions; skip: --skip-uncaptioned.

    Raises ValueError for what is no folder or no captions, and, unless they are to be left out, for images without a caption."""
    folder = Path(data)
    if not folder.is_dir():
        raise ValueError(f"--data {data}: no such folder; with --captions it is the folder of the pictures")
    found = _beside(folder) if how == BESIDE else coco.read(Path(how), "--captions ")
    where = f"--captions {how}: " + (f"{data}: " if how == BESIDE else "")
    if not found:
        raise ValueError(f"{where}{'no pictures' if how == BESIDE else 'lists no images'}")
    kept = {name: tuple(filter(None, captions)) for name, captions in found.items() if any(captions)}
    lacking = [name for name in found if name not in kept]
    if lacking and not (skip and kept):
        hint = "; --skip-uncaptioned leaves them out" if kept else ""
        raise ValueError(f"{where}{len(lacking)} of {len(found)} images have no caption, the first {lacking[0]}{hint}")
    return Files(root=folder, names=list(kept), labels=np.zeros(len(kept), np.int64), classes=1), list(kept.values()), lacking
