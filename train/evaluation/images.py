"""Sets of images on a disk, read in order, a batch at a time: an .npz as ADM's evaluator takes it, or a folder of pictures.

.npz      arr_0, uint8 (N,H,W,3); `about`, a JSON text of how they were made, where `gsnr sample` wrote it; mu, sigma, mu_s, sigma_s, the
          moments of a reference of ADM's, which may stand alone
folder    picture files below it, in the order of their paths, all of one size
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from gsnr import files
from gsnr.train.metrics import Array, Moments
from gsnr.train.prepare.sources import SUFFIXES

ARRAY = "arr_0"
MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # ADM's keys of a kind of features
LEAST = 2
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError)


class ImageSet(Protocol):
    """n images of (H,W)."""

    @property
    def path(self) -> Path: ...

    @property
    def n(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def about(self) -> Any: ...

    def batches(self, batch: int) -> Iterator[NDArray[np.uint8]]:
        """(B,H,W,3), in order. Raises ValueError for damaged data."""
        ...

    def moments(self, kind: str) -> Moments | None:
        """Those that are stored with the images."""
        ...

    @property
    def sha(self) -> str:
        """SHA-256 of the contents."""
        ...


@dataclass(frozen=True)
class Npz:
    """n is 0 and size (0,0) for a file of moments alone."""

    path: Path
    n: int
    size: tuple[int, int]
    about: Any
    stored: dict[str, Moments]

    def batches(self, batch: int) -> Iterator[NDArray[np.uint8]]:
        shape = (*self.size, 3)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARRAY}.npy") as member:
                _header(member)
                for first in range(0, self.n, batch):
                    many = min(batch, self.n - first)
                    data = _read(member, many * int(np.prod(shape)))
                    yield np.frombuffer(data, np.uint8).reshape(many, *shape)
                member.read(1)  # at its end the checksum is compared
        except DAMAGED as error:
            raise ValueError(f"{self.path}: {ARRAY} is damaged ({_said(error)})") from error

    def moments(self, kind: str) -> Moments | None:
        return self.stored.get(kind)

    @cached_property
    def sha(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Folder:
    path: Path
    pictures: list[Path]
    size: tuple[int, int]
    about: Any = None

    @property
    def n(self) -> int:
        return len(self.pictures)

    def batches(self, batch: int) -> Iterator[NDArray[np.uint8]]:
        for first in range(0, self.n, batch):
            images = [_picture(path) for path in self.pictures[first : first + batch]]
            for image, path in zip(images, self.pictures[first:], strict=False):
                if image.shape[:2] != self.size:
                    raise ValueError(f"{path}: {_sides(image.shape)}, and {self.pictures[0].name} is {_sides(self.size)}; one size is needed")
            yield np.stack(images)

    def moments(self, kind: str) -> Moments | None:
        return None

    @cached_property
    def sha(self) -> str:
        digest = hashlib.sha256()
        for path in self.pictures:
            digest.update(f"{path.relative_to(self.path)};".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def open_images(path: Path, flag: str, moments: bool = False) -> ImageSet:
    """moments: a file of moments without images will do, too. Raises ValueError naming the flag and the file for anything missing or wrong."""
    if path.is_dir():
        return _folder(path, flag)
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"{flag} {path}: {'no .npz file and no folder' if path.exists() else 'no such file or folder'}; one of images is needed")
    try:
        return _npz(path, moments)
    except DAMAGED as error:
        said = f"no whole .npz ({_said(error)})" if isinstance(error, zipfile.BadZipFile) else _said(error)
        raise ValueError(f"{flag} {path}: {said}") from error


def check_alike(samples: ImageSet, reference: ImageSet) -> None:
    """Raises ValueError for images of other sizes, as far as the reference has images."""
    if reference.n and reference.size != samples.size:
        raise ValueError(
            f"--samples {samples.path} are {_sides(samples.size)} and --reference {reference.path} {_sides(reference.size)}; "
            "one resolution is needed, so name the reference of that resolution"
        )


def _folder(path: Path, flag: str) -> Folder:
    found = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())
    pictures = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    if len(pictures) < LEAST:
        raise ValueError(f"{flag} {path}: {len(pictures)} pictures ({', '.join(SUFFIXES)}); at least {LEAST} are needed")
    height, width = _picture(pictures[0]).shape[:2]
    said = path / "about.json"
    return Folder(path, pictures, (height, width), files.read_json(said) if said.is_file() else None)


def _picture(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({_said(error)})") from error


def _npz(path: Path, moments: bool) -> Npz:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy") for name in archive.namelist()}
        stored = {} if not moments else {kind: _moments(path, *keys) for kind, keys in MOMENTS.items() if members.issuperset(keys)}
        if ARRAY not in members and not stored:
            raise ValueError(f"holds {', '.join(sorted(members)) or 'nothing'}, and no {ARRAY}: uint8 images (N,H,W,3)")
        if ARRAY not in members:
            return Npz(path, 0, (0, 0), None, stored)
        with archive.open(f"{ARRAY}.npy") as member:
            shape, fortran, dtype = _header(member)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape[1:] or fortran:
        raise ValueError(f"{ARRAY} is {dtype} {shape}{' in Fortran order' if fortran else ''}, not uint8 (N,H,W,3)")
    if shape[0] < LEAST:
        raise ValueError(f"{ARRAY} holds {shape[0]} image{'' if shape[0] == 1 else 's'}; at least {LEAST} are needed")
    return Npz(path, shape[0], shape[1:3], _about(path, members), stored)


def _about(path: Path, members: set[str]) -> Any:
    if "about" not in members:
        return None
    with np.load(path) as arrays:
        return files.parse_json(str(arrays["about"]))


def _moments(path: Path, mean: str, covariance: str) -> Moments:
    with np.load(path) as arrays:
        m: Array = arrays[mean].astype(np.float64)
        c: Array = arrays[covariance].astype(np.float64)
    if m.ndim != 1 or c.shape != (len(m), len(m)) or not (np.isfinite(m).all() and np.isfinite(c).all()):
        raise ValueError(f"{mean} {m.shape} and {covariance} {c.shape} are no mean (D,) and covariance (D,D) of finite numbers")
    return Moments(n=None, mean=m, covariance=c)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(member)
    return npy.read_array_header_1_0(member) if version == (1, 0) else npy.read_array_header_2_0(member)


def _read(member: IO[bytes], many: int) -> bytearray:
    data = bytearray()
    while len(data) < many:
        part = member.read(many - len(data))
        if not part:
            raise EOFError("it ends too early")
        data += part
    return data


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _said(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
