"""COCO's annotations: the captions of pictures, in a JSON file.

{"images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", ...}, ...],
 "annotations": [{"image_id": 9, "caption": "A plate of food.", ...}, ...]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsnr import files


def spaced(caption: str) -> str:
    """With single spaces between words: one line."""
    return " ".join(caption.split())


def _names(images: list[dict[str, Any]]) -> dict[Any, str]:
    """id -> file name, in the order of the ids. Raises ValueError for an image that is listed twice, or lies outside the folder."""
    names: dict[Any, str] = {}
    known: set[str] = set()
    for image in sorted(images, key=lambda image: image["id"]):
        name = image["file_name"]
        if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"{name!r} is not the name of a file below the folder")
        if image["id"] in names or name in known:
            raise ValueError(f"image {image['id']} ({name}) is listed twice")
        names[image["id"]] = name
        known.add(name)
    return names


def read(path: Path, flag: str = "") -> dict[str, list[str]]:
    """file name -> captions: images in the order of their ids, captions in that of the file. flag: what errors begin with.

    Raises ValueError naming the file and what is wrong with it."""
    try:
        files.require_regular(path)
        stored = files.parse_json(path.read_bytes())
        names = _names(stored["images"])
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        lost = [note["image_id"] for note in stored["annotations"] if note["image_id"] not in names]
        if lost:
            raise ValueError(f"{len(lost)} captions are of images that it does not list, the first of image {lost[0]}")
        for note in stored["annotations"]:
            captions[names[note["image_id"]]].append(spaced(note["caption"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{flag}{path}: not COCO's annotations ({type(error).__name__}: {error})") from error
    return captions
