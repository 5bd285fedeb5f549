"""Images -> rows of the cache, one VAE pass a batch; and the demo's own cache, built where it is first needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from train import vae as vaes
from train.data import cache, demo
from train.priors import features, layers

if TYPE_CHECKING:
    from train.teacher import FrozenTeacher

TEACHER = "teacher"  # the feature group of an image teacher's patch tokens


def to_pixels(images_NHWC: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (N,H,W,3) -> float32 (N,3,H,W) in [-1, 1]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def encode_rows(
    vae: vaes.FrozenVAE,
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]],
    header: cache.Header,
    device: str,
    teacher: FrozenTeacher | None = None,
) -> Iterator[cache.Rows]:
    """Streams of (images (N,H,W,3), labels (N,)) -> streams of cache rows; image_id counts up from 0."""
    chosen = [layer for layer in layers.layers(vae.model.encoder) if layer.group in header.groups]
    grid = next(iter(header.groups.values()))[-1] if header.groups else 0
    first = 0
    for images, labels in batches:
        pixels = to_pixels(images).to(device)
        mean, std, by_group = features.encode(vae.model, pixels, chosen, grid, header.resampling)
        if teacher is not None:
            by_group[TEACHER] = teacher.features(pixels).unsqueeze(1)
        ids = np.arange(first, first + len(images), dtype=np.int64)
        first += len(images)
        rows: cache.Rows = {"image_id": ids, "label": labels, "view": np.zeros(len(images), dtype=np.int8)}
        rows |= {"mean": mean.cpu().numpy(), "std": std.cpu().numpy()}
        for group, f in by_group.items():
            rows[group] = f.half().cpu().numpy()
            if not np.isfinite(rows[group]).all():
                raise ValueError(f"features of {group} exceed float16 in images {ids[0]}-{ids[-1]} of {header.data!r}; leave {group} out")
        yield rows


def make_header(
    vae: vaes.FrozenVAE,
    *,
    data: str,
    resolution: int,
    num_classes: int,
    grid: int,
    groups: tuple[str, ...],
    resampling: str,
    preprocessing: str,
    sizes: dict[str, int],
    teacher: FrozenTeacher | None = None,
) -> cache.Header:
    """The header of a cache made with this VAE: group shapes from its layer walk.

    Raises ValueError for an unknown group, or a teacher whose grid is not the model's.
    """
    unknown = [g for g in groups if g not in layers.GROUPS]
    if unknown:
        raise ValueError(f"feature group {unknown[0]!r} does not exist; choose from {', '.join(layers.GROUPS)}")
    walked = layers.layers(vae.model.encoder)
    members = {g: [layer for layer in walked if layer.group == g] for g in groups}
    for g, ls in members.items():
        if not ls or len({layer.channels for layer in ls}) > 1:
            widths = ", ".join(str(layer.channels) for layer in ls) or "none"
            raise ValueError(f"--features {g}: this VAE's layers of {g} have widths {widths}; a group needs layers of one width; leave {g} out")
    shapes = {g: (len(ls), ls[0].channels, grid, grid) for g, ls in members.items()}
    names = {g: tuple(f"{layer.number}:{layer.name}" for layer in ls) for g, ls in members.items()}
    if teacher is not None:
        if teacher.grid(resolution) != grid:
            raise ValueError(
                f"teacher {teacher.name!r} has {teacher.grid(resolution)}x{teacher.grid(resolution)} tokens at {resolution} pixels; "
                f"the model has {grid}x{grid}"
            )
        shapes[TEACHER], names[TEACHER] = (1, teacher.channels, grid, grid), (teacher.name,)
    side = resolution // vae.downsampling
    return cache.Header(
        schema_version=cache.SCHEMA_VERSION,
        data=data,
        vae=vae.name,
        vae_sha=vae.sha,
        scale=vae.scale,
        resolution=resolution,
        num_classes=num_classes,
        latent_shape=(int(vae.model.config.latent_channels), side, side),
        resampling=resampling,
        preprocessing=preprocessing,
        dtype="float16",
        groups=shapes,
        layers=names,
        sizes=sizes,
        teacher=teacher.name if teacher else "",
        teacher_sha=teacher.sha if teacher else "",
    )


def cache_root() -> Path:
    """Where caches made on first use live: $GSNR_CACHE, or ~/.cache/gsnr."""
    return Path(os.environ.get("GSNR_CACHE") or Path.home() / ".cache" / "gsnr")


def demo_cache(n_train: int, n_heldout: int, resampling: str, grid: int = 8, batch: int = 64) -> Path:
    """The demo's cache folder, built if it is not there. Its name is a hash of everything that went into it."""
    demo.check("train", n_train)
    demo.check("heldout", n_heldout)
    from train import teacher as teachers  # brings transformers, which takes seconds

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
    )
    key = hashlib.sha256(json.dumps(asdict(header), sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_root() / f"demo-{key}"
    if (folder / cache.HEADER).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae.model.to(device)
    teacher.model.to(device)
    bar = tqdm(total=n_train + n_heldout, desc="demo cache", unit="image", mininterval=1.0)

    def batches(split: str, n: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        images, labels = demo.images(split, n)
        for start in range(0, n, batch):
            yield images[start : start + batch], labels[start : start + batch]
            bar.update(len(images[start : start + batch]))

    cache.write(folder, header, {split: encode_rows(vae, batches(split, n), header, device, teacher) for split, n in header.sizes.items()})
    bar.close()
    return folder
