"""What `gsnr sample --n` leaves: ADM's npz (guided-diffusion), or a folder of PNGs. Written part by part, so that 50,000 images never lie in memory.

    OUT.npz    arr_0 (N,H,W,3) uint8; labels (N,) int64; about, a JSON text of how they were made; of a model that reads
               text captions (N,), of which labels are the numbers
    OUT/       000000.png, ...; labels.csv (image, label); captions.txt, one a line; about.json

The same samples make the same bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsnr import files

Parts = Iterable[NDArray[np.uint8]]
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can hold


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(zipfile.ZipInfo(f"{name}.npy", LONG_AGO), "w", force_zip64=True)


def write_npz(
    out: Path,
    parts: Parts,
    shape: tuple[int, int, int, int],
    labels_N: NDArray[np.int64],
    about: dict[str, Any],
    captions: list[str] | None = None,
) -> None:
    """Replaces `out` as a whole. shape: of arr_0; captions: of the samples, of a model that reads text."""
    beside = {"labels": labels_N, "about": np.array(json.dumps(about))} | ({} if captions is None else {"captions": np.array(captions)})
    with files.replacing(out) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, "arr_0") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for part in parts:
                member.write(np.ascontiguousarray(part).data)
        for name, values in beside.items():
            with _member(archive, name) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def write_folder(out: Path, parts: Parts, labels_N: NDArray[np.int64], about: dict[str, Any], captions: list[str] | None = None) -> None:
    """A new folder, which appears when it is whole. captions: of the samples, of a model that reads text."""
    with files.making(out) as aside:
        names = [f"{number:06d}.png" for number in range(len(labels_N))]
        images = (image for part in parts for image in part)
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image).save(aside / name)
        rows = (f"{name},{label}" for name, label in zip(names, labels_N, strict=True))
        (aside / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
        if captions is not None:
            (aside / "captions.txt").write_text("\n".join([*captions, ""]), encoding="utf-8")
        (aside / "about.json").write_text(json.dumps(about, indent=2) + "\n")


def is_there(out: Path) -> bool:
    """Whether the name is taken; an empty folder is free."""
    return (out.exists() or out.is_symlink()) and not (out.suffix == "" and out.is_dir() and not any(out.iterdir()))


def check_kind(out: Path) -> None:
    """Raises ValueError for a name that is neither an npz's nor a folder's."""
    if out.suffix not in (".npz", ""):
        raise ValueError(f"--out {out}: name a file that ends in .npz, or a folder for PNGs")


def about_of(out: Path) -> dict[str, Any]:
    """How an output says that it was made; {} for what is none of ours."""
    try:
        if out.is_dir():
            return dict(files.read_json(out / "about.json"))
        with np.load(out, allow_pickle=False) as stored:
            return dict(files.parse_json(str(stored["about"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return {}


def is_made(out: Path, options: dict[str, Any]) -> bool:
    """Whether `out` is there and was made with these options. Raises ValueError where something else is there, and where nothing can be written."""
    if is_there(out):
        about = about_of(out)
        if any(name not in about or about[name] != value for name, value in json.loads(json.dumps(options)).items()):
            raise ValueError(f"--out {out}: exists; name a new one")
        return True
    files.check_writable(out.parent, "--out")
    return False
