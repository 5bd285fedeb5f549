"""Latents that somebody else prepared, opened as a cache without features: for alignments that read none (none, sra, sra2).

A reader is a module (`repa_cache`, `irepa_cache`, `uvit_cache`) with `recognises(folder)` and `Store(folder)`. Such folders do not say which VAE made
them: --data.vae does, and nothing can check it. Which images are held out is chosen as `gsnr prepare` chooses, where the folder does not say.
Shapes: N images, latent (C,h,w), text (L,C).

They have no checksums either, and may lie where nothing can be written. What tells them from others under the same names is taken whenever they
are opened: all labels, and the latents of SAMPLED images a split. Others made anew differ in all; where some images outside the sample alone were
exchanged, that is not noticed. (A cache is compared row by row: `gsnr prepare --features none` makes one of the pictures.)
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gsnr.train import vae as vaes
from gsnr.train.config import TEXT, DataConfig
from gsnr.train.data import heldout, irepa_cache, repa_cache, uvit_cache
from gsnr.train.data.cache import SCHEMA_VERSION, SPLITS, Header, Rows, Split, flags_for
from gsnr.train.data.labels import Labels, check_labels
from gsnr.train.data.latents import Scaling
from gsnr.train.vaes import FrozenVAE

READERS = (repa_cache, irepa_cache, uvit_cache)
SAMPLED = 256  # files to read before training starts: no more than a few steps do


class TextStates(Protocol):
    """Of the captions of a folder's images. counts: (N,) how many an image has."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def counts(self) -> NDArray[np.int64]: ...

    def take(self, number_N: NDArray[np.int64], u_N: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N,L,C): of caption floor(n u) of each image's n. Raises ValueError naming what is damaged."""
        ...

    def null(self) -> NDArray[np.float32]:
        """(L,C): of the empty caption."""
        ...

    def captions(self, number_N: NDArray[np.int64]) -> list[tuple[str, ...]]:
        """The words of each image's. Raises ValueError where they are not known."""
        ...


class Store(Protocol):
    """The images of a folder by number. Pickled as its folder. labels: (N,); kind: whose folder it is; pictures: where its images are."""

    kind: str
    folder: Path
    pictures: Path
    labels: Labels
    shape: tuple[int, ...]  # (2C,h,w): mean and standard deviation of the posterior

    @property
    def members(self) -> dict[str, NDArray[np.int64]] | None:
        """split -> numbers of its images, where the folder says so."""
        ...

    @property
    def text(self) -> TextStates | None: ...

    def name(self, number: int) -> str:
        """An image, for a person."""
        ...

    def moments(self, number_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N,2C,h,w), before any scaling. Raises ValueError naming what is damaged."""
        ...

    def channels(self, stats: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(scale, bias) of each channel, ((), ()) for the VAE's own factor. stats: --data.latent-stats."""
        ...


class StoredSplit:
    """See `gsnr.train.data.cache.Split`."""

    def __init__(self, store: Store, header: Header, split: str) -> None:
        self.opened_as = (store, header, split)
        self.store, self.header = store, header
        self.numbers = (store.members or heldout.choose(len(store.labels), header.sizes["heldout"]))[split]
        self.size = len(self.numbers)

    def __reduce__(self) -> tuple[type[StoredSplit], tuple[Store, Header, str]]:
        return StoredSplit, self.opened_as

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int | NDArray[np.int64] = 0) -> Rows:
        assert not np.any(view)
        number_N = self.numbers[index_N]
        rows: Rows = {"image_id": number_N, "label": self.store.labels[number_N]}
        if {"mean", "std"} & set(columns):
            rows["mean"], rows["std"] = np.split(self.store.moments(number_N), 2, axis=1)
        return {name: rows[name] for name in columns}

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        return {}

    def _text(self) -> TextStates:
        if self.store.text is None:
            raise ValueError(f"{self.store.folder}: {self.store.kind} latents have no captions; {_command(self.store, '', (TEXT,))} makes some")
        return self.store.text

    def texts(self, index_N: NDArray[np.int64], u_N: NDArray[np.float64]) -> NDArray[np.float32]:
        return self._text().take(self.numbers[index_N], u_N)

    def null_text(self) -> NDArray[np.float32]:
        return self._text().null()

    def captions(self, index_N: NDArray[np.int64]) -> list[tuple[str, ...]]:
        return self._text().captions(self.numbers[index_N])


def _command(store: Store, vae: str, needs: tuple[str, ...]) -> str:
    """The `gsnr prepare` that makes what it lacks."""
    return f"gsnr prepare --data {store.pictures} --vae {vae or 'ID'} {flags_for(needs)} --out CACHE"


def _rows_sha(split: StoredSplit) -> str:
    """SHA-256 of the labels of all its images and the moments of the first SAMPLED in `heldout.order`, which is where probes begin; of captions, how
    many each has, the empty one's states, and those of the first of the same images."""
    digest = hashlib.sha256(split.store.labels[split.numbers].astype(np.int64).tobytes())
    sampled = split.numbers[heldout.order(split.size)[:SAMPLED]]
    digest.update(split.store.moments(sampled).tobytes())
    if (text := split.store.text) is not None:
        for array in (text.counts[split.numbers], text.null(), text.take(sampled, np.zeros(len(sampled)))):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _scaling(store: Store, data: DataConfig, frozen: FrozenVAE) -> Scaling:
    """The folder's own, or the VAE's. Raises ValueError where neither has any, or the folder's are of other channels."""
    channel_scale, channel_bias = store.channels(data.latent_stats)
    if len(channel_scale) not in (0, frozen.channels):
        raise ValueError(f"--data.latent-stats: holds {len(channel_scale)} channels, the latents have {frozen.channels}")
    scaling = Scaling(factor=1.0, channel_scale=channel_scale, channel_bias=channel_bias) if channel_scale else frozen.scaling
    if scaling is None:
        raise ValueError(f"--data.vae {data.vae}: has no scaling factor; name the latents' statistics with --data.latent-stats (iREPA's have them)")
    return scaling


def open_folder(data: DataConfig, needs: tuple[str, ...], num_classes: int) -> tuple[Header, dict[str, Split]] | None:
    """(header, split -> Split) of data.path; None where no reader knows it.

    Raises ValueError where features are needed, the VAE is not named or cannot have made the latents, or a label is no class.
    """
    folder = Path(data.path)
    reader = next((reader for reader in READERS if reader.recognises(folder)), None)
    if reader is None:
        return None
    store: Store = reader.Store(folder)
    lacking = [name for name in needs if name != TEXT or store.text is None]
    if lacking:
        raise ValueError(
            f"{folder}: {store.kind} latents hold no features of {', '.join(lacking)}; make a cache that does: {_command(store, data.vae, needs)}"
        )
    if not data.vae:
        raise ValueError(f"{folder}: {store.kind} latents do not say which VAE made them; name it with --data.vae (stabilityai/sd-vae-ft-mse, say)")
    frozen, count = vaes.load(data.vae), len(store.labels)
    channels, side = frozen.channels, store.shape[-1]
    if store.shape != (2 * channels, side, side):
        raise ValueError(f"{folder}: moments of shape {store.shape}; the VAE {data.vae!r} makes {2 * channels}, {side}, {side}: not made by it")
    if store.members is None and not 0 < data.heldout < count:
        raise ValueError(f"--data.heldout {data.heldout}: must be at least 1 and leave some of the {count} images of {folder} for training")
    if store.text is None:
        check_labels(store.labels, num_classes, store.name)
        of_text: dict[str, Any] = {"num_classes": num_classes}
    else:
        of_text = {"num_classes": 1, "text_shape": store.text.shape, "captions": int(store.text.counts.max())}
    sizes = {"train": count - data.heldout, "heldout": data.heldout}
    if store.members is not None:
        sizes = {split: len(numbers) for split, numbers in store.members.items()}
    scaling = _scaling(store, data, frozen)
    header = Header(
        schema_version=SCHEMA_VERSION,
        data=data.path,
        vae=frozen.name,
        vae_sha=frozen.sha,
        scale=scaling.factor,
        resolution=side * frozen.downsampling,
        latent_shape=(channels, side, side),
        resampling=data.resampling,
        preprocessing=f"by {store.kind}",
        dtype="float16",
        groups={},
        layers={},
        sizes=sizes,
        channel_scale=scaling.channel_scale,
        channel_bias=scaling.channel_bias,
        **of_text,
    )
    header = replace(header, rows_sha={split: _rows_sha(StoredSplit(store, header, split)) for split in SPLITS})
    return header, {split: StoredSplit(store, header, split) for split in SPLITS}
