"""The folders that iREPA (and REPA-E) publish: Arrow, as `datasets.save_to_disk` writes it.

    DATA/imagenet-latents-sdvae-ft-mse-f8d4/          column `data`: (2C,h,w), the posterior's mean, then its standard deviation, not scaled
    DATA/imagenet-latents-images/                     columns image, label; row i belongs to row i of the latents
    DATA/imagenet_train_labels.txt                    or this instead: one class number a line
    DATA/../pretrained_models/NAME-latents-stats.pt   latents_scale and latents_bias (C,): final = (raw - bias) scale

DATA may be a latents folder itself. What is uncertain: the dtype of `data` and whether a cell has a leading dimension of one (both are read),
and where people keep the statistics (--data.latent-stats names another file, or `vae` for the VAE's own factor). Folders `val` are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gsnr.train.data import arrow

LATENTS = "imagenet-latents-"
PICTURES = "imagenet-latents-images"
LABELS = "imagenet_train_labels.txt"
COLUMN = "data"


def _candidates(folder: Path) -> list[Path]:
    if (folder / arrow.STATE).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"{LATENTS}*/{arrow.STATE}") if path.parent.name != PICTURES)


def recognises(folder: Path) -> bool:
    return bool(_candidates(folder))


def _labels(root: Path) -> NDArray[np.int64]:
    if (root / PICTURES / arrow.STATE).is_file():
        table = arrow.read_folder(root / PICTURES)
        if "label" not in table.column_names:
            raise ValueError(f"{root / PICTURES}: has no column 'label', but {', '.join(table.column_names)}")
        return arrow.Column(table.column("label"), ()).take(np.arange(table.num_rows)).astype(np.int64)
    path = root / LABELS
    try:
        return np.array([int(line) for line in path.read_text().split()], dtype=np.int64)
    except FileNotFoundError as error:
        raise ValueError(f"{root}: neither {PICTURES} nor {LABELS} is there to say the labels") from error
    except ValueError as error:
        raise ValueError(f"{path}: not one class number a line ({error})") from error


class Store:
    """See `gsnr.train.data.latent_folders.Store`. Raises ValueError for a folder that is damaged, or where labels and latents differ in number."""

    kind = "iREPA"
    members, text = None, None

    def __init__(self, folder: Path) -> None:
        found = _candidates(folder)
        if len(found) > 1:
            raise ValueError(f"--data.path {folder}: holds latents of several VAEs; name one of {', '.join(str(path) for path in found)}")
        self.folder, self.latents = folder, found[0]
        self.pictures = self.latents.parent / PICTURES
        table = arrow.read_folder(self.latents)
        if COLUMN not in table.column_names:
            raise ValueError(f"{self.latents}: has no column {COLUMN!r}, but {', '.join(table.column_names)}; not latents")
        self.labels = _labels(self.latents.parent)
        if len(self.labels) != table.num_rows:
            raise ValueError(f"{self.latents}: {table.num_rows} latents, but {len(self.labels)} labels beside it")
        shape = np.shape(table.column(COLUMN)[0].as_py())
        self.shape: tuple[int, ...] = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
        self.column = arrow.Column(table.column(COLUMN), self.shape)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    def name(self, number: int) -> str:
        return f"{self.latents}, image {number}"

    def moments(self, number_N: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.column.take(number_N).astype(np.float32, copy=False)

    def channels(self, stats: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Raises ValueError where the statistics cannot be read."""
        if stats == "vae":
            return (), ()
        name = self.latents.name.removeprefix(LATENTS)
        path = Path(stats) if stats else self.latents.parent.parent / "pretrained_models" / f"{name}-latents-stats.pt"
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            scale, bias = (tuple(stored[key].double().flatten().tolist()) for key in ("latents_scale", "latents_bias"))
        except Exception as error:  # torch raises a dozen kinds for a file that is missing, damaged or not its own
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
            wanted = "name iREPA's latents_scale and latents_bias with --data.latent-stats, or `vae` for the VAE's own factor"
            raise ValueError(f"{path}: not the latents' statistics ({reason}); {wanted}") from error
        return scale, bias
