"""The demo's cache, built where it is first needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gsnr import files
from gsnr.train import vae as vaes
from gsnr.train.cache_root import cache_root
from gsnr.train.data import cache, statistics
from gsnr.train.demo import images as demo
from gsnr.train.prepare import shards
from gsnr.train.prepare.encode import Encoder, make_header
from gsnr.train.priors import layers


def demo_cache(n_train: int, n_heldout: int, resampling: str, grid: int = 8, batch: int = 64, class_token: bool = False) -> Path:
    """The demo's cache folder, built if it is not there. Its name is a hash of everything that went into it. class_token: with the teacher's."""
    demo.check("train", n_train)
    demo.check("heldout", n_heldout)
    from gsnr.train import teacher as teachers  # brings transformers, which takes seconds

    vae, teacher = vaes.load("demo"), teachers.load("demo")
    header = make_header(
        vae,
        teacher=teacher,
        data="demo",
        resolution=demo.RESOLUTION,
        num_classes=demo.NUM_CLASSES,
        grid=grid,
        groups=layers.GROUPS,
        resampling=resampling,
        preprocessing=f"demo images, version {demo.VERSION}, seed 0",
        sizes={"train": n_train, "heldout": n_heldout},
        class_token=class_token,
    )
    key = hashlib.sha256(json.dumps(header.written(), sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_root() / f"demo-{key}"
    if (folder / cache.HEADER).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(vae, header, "cpu", teacher)  # on every machine: a run goes on where its rows are the same, to the last bit
    bar = tqdm(total=n_train + n_heldout, desc="demo cache", unit="image", mininterval=1.0)

    def batches(split: str, n: int) -> Iterator[tuple[cache.Rows, statistics.Sums]]:
        images, labels = demo.images(split, n)
        for start in range(0, n, batch):
            part = slice(start, start + batch)
            yield encoder(images[part], np.arange(n)[part], labels[part])
            bar.update(len(images[part]))

    with files.naming(folder), files.scratch(folder) as aside:
        place = shards.Workplace(aside)
        place.make_ready({})
        whole = shards.cut({split: np.arange(n) for split, n in header.sizes.items()}, max(header.sizes.values()))
        for shard in whole:
            place.write(shard, header, batches(shard.split, len(shard.images)), shards.Seen())
        shards.finish(place, whole, header, {})
        shards.publish(place, folder)
    bar.close()
    return folder
