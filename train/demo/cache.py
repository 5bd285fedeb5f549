"""The demo's caches, of digits and of digits with captions, built where they are first needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gsnr import files, locks
from gsnr.train import vae as vaes
from gsnr.train.cache_root import TEXT_DEMO, cache_root
from gsnr.train.data import cache, statistics
from gsnr.train.demo import captioned
from gsnr.train.demo import images as demo
from gsnr.train.prepare import shards
from gsnr.train.prepare.captions import Captions
from gsnr.train.prepare.encode import Encoder, make_header
from gsnr.train.priors import layers
from gsnr.train.vaes import FrozenVAE

if TYPE_CHECKING:
    from gsnr.train.teacher import FrozenTeacher

Made = Callable[[str, int], tuple[NDArray[np.uint8], NDArray[np.int64]]]  # split, n -> images (n,64,64,3) and labels (n,)
BATCH = 64


def demo_cache(n_train: int, n_heldout: int, resampling: str, grid: int = 8, class_token: bool = False) -> Path:
    """The demo's cache folder, built if it is not there. Its name is a hash of everything that went into it. class_token: with the teacher's."""
    preprocessing = f"demo images, version {demo.VERSION}, seed 0"
    sizes = {"train": n_train, "heldout": n_heldout}
    return _cache("demo", demo.NUM_CLASSES, demo.images, sizes, preprocessing, resampling=resampling, grid=grid, class_token=class_token)


def text_cache(n_train: int, n_heldout: int, resampling: str) -> Path:
    """The same of the images with captions: every label 0, and the states of the demo's text encoder."""
    from gsnr.train import text  # brings transformers, which takes seconds

    sizes = {"train": n_train, "heldout": n_heldout}
    for split, n in sizes.items():
        demo.check(split, n)
    made = {split: captioned.images(split, n) for split, n in sizes.items()}
    texts = [captions for split in made.values() for captions in split.captions]
    encoded = Captions(texts=texts, encoder=text.load(text.DEMO))
    preprocessing = f"demo images with captions, version {captioned.VERSION}, seed 0"
    images: Made = lambda split, n: (made[split].images[:n], np.zeros(n, np.int64))
    return _cache(TEXT_DEMO, 1, images, sizes, preprocessing, resampling=resampling, grid=8, captions=encoded)


def _cache(
    name: str,
    classes: int,
    images: Made,
    sizes: dict[str, int],
    preprocessing: str,
    *,
    resampling: str,
    grid: int,
    class_token: bool = False,
    captions: Captions | None = None,
) -> Path:
    """captions: of the train split's images, then of the held-out ones."""
    for split, n in sizes.items():
        demo.check(split, n)
    vae, teacher = _encoders()
    header = make_header(
        vae,
        teacher=teacher,
        data=name,
        resolution=demo.RESOLUTION,
        num_classes=classes,
        grid=grid,
        groups=layers.GROUPS,
        resampling=resampling,
        preprocessing=preprocessing,
        sizes=sizes,
        class_token=class_token,
        captions=captions,
    )
    key = hashlib.sha256(json.dumps(header.written(), sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_root() / f"{name}-{key}"
    if (folder / cache.HEADER).is_file():
        return folder
    files.check_writable(folder.parent, "GSNR_CACHE")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.naming(folder), locks.turn(folder.parent / f".{folder.name}.lock", f"the {name} cache"):
        if not (folder / cache.HEADER).is_file():
            encoder = Encoder(vae, header, "cpu", teacher, captions=captions)  # the CPU everywhere: a run goes on where its rows have the same bits
            _build(folder, encoder, images)
    return folder


@lru_cache(maxsize=1)
def _encoders() -> tuple[FrozenVAE, FrozenTeacher]:
    """The demo's, for nobody but this file: whoever opens its cache needs their hashes, and a process may do so a hundred times."""
    from gsnr.train import teacher as teachers  # brings transformers, which takes seconds

    return vaes.load("demo"), teachers.load("demo")


def _build(folder: Path, encoder: Encoder, images: Made) -> None:
    header = encoder.header
    bar = tqdm(total=sum(header.sizes.values()), desc=f"{header.data} cache", unit="image", mininterval=1.0)
    first = {"train": 0, "heldout": header.sizes["train"] if encoder.captions else 0}

    def batches(split: str, n: int) -> Iterator[tuple[cache.Rows, statistics.Sums]]:
        pixels, labels = images(split, n)
        for start in range(0, n, BATCH):
            part = slice(start, start + BATCH)
            yield encoder(pixels[part], first[split] + np.arange(n)[part], labels[part])
            bar.update(len(pixels[part]))

    with files.naming(folder), files.scratch(folder) as aside:
        place = shards.Workplace(aside)
        place.make_ready({})
        whole = shards.cut({split: np.arange(n) for split, n in header.sizes.items()}, max(header.sizes.values()))
        for shard in whole:
            place.write(shard, header, batches(shard.split, len(shard.images)), shards.Seen())
        shards.finish(place, whole, header, {}, null_text=encoder.captions.null_text() if encoder.captions else None)
        shards.publish(place, folder)
    bar.close()
