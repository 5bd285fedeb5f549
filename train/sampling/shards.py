"""Samples on their way: shards of consecutive samples in a hidden folder beside the output, each written aside and renamed, so that a kill loses
no finished one.

    .OUT.sampling/00003.safetensors     images (n,H,W,3) uint8, and the SHA-256 of their latents; sealed
    .OUT.sampling/options.json, lock    what all of it depends on; held by the process that leads

How the samples are cut depends on their number alone. Shapes: n samples of a shard.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from gsnr import checksums, files, locks

IMAGES, LATENTS = "images", "latents_sha256"


def cut(n: int, size: int) -> list[NDArray[np.int64]]:
    """Numbers 0 to n - 1, in shards of `size`."""
    return np.split(np.arange(n, dtype=np.int64), range(size, n, size))


class Workplace:
    """The hidden folder. Everything in it may be left behind by a kill, and is taken up again."""

    def __init__(self, out: Path) -> None:
        self.out, self.aside = out, out.with_name(f".{out.name}.sampling")
        self.record = self.aside / "options.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands out, until this process ends. Raises ValueError where one is at work."""
        self.aside.mkdir(parents=True, exist_ok=True)
        with locks.Lock(self.aside / "lock"):
            yield

    def begin(self, options: dict[str, Any]) -> None:
        """Raises ValueError, naming the first that differs, where shards of other options are there."""
        if self.record.is_file() and any(self.aside.glob("[0-9]*")):
            before = checksums.read_sealed(self.record)
            for name, value in json.loads(json.dumps(options)).items():
                if before.get(name) != value:
                    raise ValueError(
                        f"--out {self.out}: was begun, in {self.aside}, with {name} {before.get(name)}, not {value}; "
                        "name another --out, or delete that folder"
                    )
        files.write_text(self.record, json.dumps(checksums.seal(options), indent=2) + "\n")

    def path(self, number: int) -> Path:
        return self.aside / f"{number:05d}.safetensors"

    def finished(self, number: int) -> bool:
        return self.path(number).is_file()

    def write(self, number: int, images_NHWC: NDArray[np.uint8], latents_sha: str) -> None:
        """Raises OSError on a full disk. In memory a GPU leaves channels first, and safetensors writes memory as it lies."""
        with files.replacing(self.path(number)) as aside:
            aside.write_bytes(checksums.seal_tensors(save({IMAGES: np.ascontiguousarray(images_NHWC)}, {LATENTS: latents_sha})))

    def read(self, number: int) -> tuple[NDArray[np.uint8], str]:
        """(images, SHA-256 of their latents). Raises ValueError naming a shard that is damaged."""
        path = self.path(number)
        try:
            images: NDArray[np.uint8] = load(checksums.read_tensors(path))[IMAGES]
            with safe_open(path, "numpy") as stored:
                return images, stored.metadata()[LATENTS]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it and run the same command again") from error

    def remove(self) -> None:
        """Under a name by which `files` knows what a killed process left."""
        if not self.aside.is_dir():
            return
        left = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.{files.HOST}.", suffix=files.ASIDE, dir=self.out.parent))
        os.rename(self.aside, left)
        shutil.rmtree(left, ignore_errors=True)
