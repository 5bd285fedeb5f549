"""COCO's annotations: the captions of pictures, in a JSON file.

{"images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", ...}, ...],
 "annotations": [{"image_id": 9, "caption": "A plate of food.", ...}, ...]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsnr import files

ENTRIES: dict[str, dict[str, type]] = {"images": {"id": int, "file_name": str}, "annotations": {"image_id": int, "caption": str}}


def spaced(caption: str) -> str:
    """With single spaces between words: one line."""
    return " ".join(caption.split())


def _names(images: list[dict[str, Any]]) -> dict[Any, str]:
    """id -> file name, in the order of the ids. Raises ValueError for an image that is listed twice, or lies outside the folder."""
    names: dict[Any, str] = {}
    known: set[str] = set()
    for image in sorted(images, key=lambda image: image["id"]):
        name, number = image["file_name"], image["id"]
        if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"{name!r} is not the name of a file below the folder")
        if number in names:
            raise ValueError(f"id {number} is that of two images, {names[number]} and {name}")
        if name in known:
            raise ValueError(f"{name} is listed twice")
        names[number] = name
        known.add(name)
    return names


def _checked(stored: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(images, annotations). Raises ValueError naming the first entry that is of another form."""
    for key, wanted in ENTRIES.items():
        entries = stored.get(key) if isinstance(stored, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"it has no list {key!r}")
        for place, entry in enumerate(entries):
            for name, kind in wanted.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                    raise ValueError(f"entry {place} of {key!r} has no {name!r}, or one that is no {'text' if kind is str else 'number'}")
    return stored["images"], stored["annotations"]


def read(path: Path, flag: str = "") -> dict[str, list[str]]:
    """file name -> captions: images in the order of their ids, captions in that of the file. flag: what errors begin with.

    Raises ValueError naming the file and what is wrong with it."""
    if not path.exists():
        raise ValueError(f"{flag}{path}: no such file")
    try:
        files.require_regular(path)
        stored = files.parse_json(path.read_bytes())
        images, annotations = _checked(stored)
        names = _names(images)
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        lost = [note["image_id"] for note in annotations if note["image_id"] not in names]
        if lost:
            raise ValueError(f"{len(lost)} captions are of images that it does not list, the first of image {lost[0]}")
        for note in annotations:
            captions[names[note["image_id"]]].append(spaced(note["caption"]))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{flag}{path}: not COCO's annotations ({error})") from error
    return captions
