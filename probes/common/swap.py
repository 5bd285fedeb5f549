"""A subject whose VAE features come from another VAE's cache of the same images: latents, noise and times stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gsnr.probes.common.subject import Subject
from gsnr.train.config import CLASS_TOKEN
from gsnr.train.data.cache import Header, Over, Rows, Split

FROM_LATENTS = ("image_id", "label", "mean", "std", CLASS_TOKEN)


class Swapped(Over):
    """See `train.data.cache.Split`: features of one split, everything else of another."""

    def __init__(self, base: Split, features: Split, header: Header) -> None:
        self.stored, self.features, self.header, self.size = base, features, header, base.size

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        of_latents = tuple(name for name in columns if name in FROM_LATENTS)
        of_features = tuple(name for name in columns if name not in FROM_LATENTS)
        return self.stored.take(index_N, of_latents, view) | (self.features.take(index_N, of_features, view) if of_features else {})

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        return self.features.statistics()


def swapped(subject: Subject, name: str, header: Header, splits: dict[str, Split]) -> Subject:
    """The subject with the features of cache `name`. Raises ValueError where that does not hold the same images on the same token grid."""
    base = subject.header
    same = header.data == base.data and header.sizes == base.sizes
    for split, size in base.sizes.items() if same else ():
        one, two = (s[split].take(np.arange(size, dtype=np.int64), ("image_id", "label")) for s in (subject.splits, splits))
        same &= all(np.array_equal(one[key], two[key]) for key in one)
    if not same:
        raise ValueError(f"--swap {name}: holds {header.data!r}, not the same images and labels as {base.data!r}; prepare it from the same --data")
    if header.views != base.views:
        raise ValueError(f"--swap {name}: {header.views} views an image, the checkpoint's data {base.views}; prepare it with the same --flip")
    grids = {shape[-1] for shape in (*base.maps.values(), *header.maps.values())}
    if len(grids) > 1:
        raise ValueError(f"--swap {name}: features on grids of {', '.join(f'{g}x{g}' for g in sorted(grids))}; prepare it for the same tokens")
    token = {group: shape for group, shape in base.groups.items() if group == CLASS_TOKEN}
    merged = replace(base, vae=header.vae, groups=header.maps | token, layers=header.layers)
    return replace(subject, header=merged, splits={split: Swapped(subject.splits[split], splits[split], merged) for split in splits})
