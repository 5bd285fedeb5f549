"""What a finished fork is worth: numbers of its averaged weights, on held-out images, times and noise that are the same for all forks.

FORK/measured.json   name -> value of each metric, and what they were measured with
FORK/measured.npz    velocity (T,N) float32: the held-out velocity loss of each image in each stratum of t; features (M,F) float32: a
                     teacher's features of samples from fixed noise, where the Fréchet distance or a metric of samples was asked for
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsnr import checksums, files, plugins
from gsnr.train import opening
from gsnr.train.data.cache import Header, Split
from gsnr.train.evaluate import HEUN_STEPS, losses_over_time
from gsnr.train.frechet import cached_features, sampled_features
from gsnr.train.metrics import Blocks, Moments
from gsnr.train.metrics._frechet import Distance
from gsnr.train.runs import checkpoint

VALUES, ARRAYS = "measured.json", "measured.npz"
SEED = 0  # of the held-out times and noise, and of the samples: one for all forks


@dataclass(frozen=True, kw_only=True)
class Asked:
    """images: held-out images; frechet: samples, 0 for none; metrics: others of these samples, by name."""

    images: int
    frechet: int
    metrics: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        return {"images": self.images, "frechet": self.frechet, "metrics": list(self.metrics), "seed": SEED}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The data of the checkpoint, and the train split's features where samples are compared with it."""

    header: Header
    splits: dict[str, Split]
    train: NDArray[np.float32] | None

    @staticmethod
    def of(loaded: checkpoint.Checkpoint, samples: bool) -> Reference:
        header, splits = opening.data_of(loaded, None, features=False)
        return Reference(header=header, splits=splits, train=cached_features(splits["train"]).astype(np.float32) if samples else None)


def measure(fork: Path, reference: Reference, asked: Asked) -> tuple[dict[str, float], dict[str, NDArray[np.float32]]]:
    """Values and arrays of a fork's last checkpoint. Raises ValueError where it is damaged."""
    loaded = checkpoint.load(fork, "ema")
    loss_TN = losses_over_time(loaded.model, reference.splits, asked.images, SEED)["model"].astype(np.float32)
    values, arrays = {"velocity_loss": float(loss_TN.mean(dtype=np.float64))}, {"velocity": loss_TN}
    if asked.frechet and reference.train is not None:
        features_MF = sampled_features(loaded, reference.header, reference.splits["heldout"], asked.frechet, HEUN_STEPS, SEED).astype(np.float32)
        moments = Moments.of(reference.train)
        values["frechet"] = Distance(moments)(Moments.of(features_MF))
        for name in asked.metrics:
            metric = plugins.find("metrics", name)
            pair = (Blocks.of(features_MF), moments) if metric.NEEDS == "moments" else (features_MF, reference.train)
            found = metric.measure(*pair)[name]
            values |= {} if found is None else {name: found}
        arrays["features"] = features_MF
    return values, arrays


def write(fork: Path, about: dict[str, Any], values: dict[str, float], arrays: dict[str, NDArray[np.float32]], sec: float) -> None:
    """Both files, or none. about: what the measurement must have been made with to be used again; sec: what the fork took."""
    with files.together() as replacing:
        with replacing(fork / ARRAYS) as aside, aside.open("wb") as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]
        with replacing(fork / VALUES) as aside:
            aside.write_text(json.dumps(checksums.seal({"about": about, "values": values, "sec": sec}), indent=2) + "\n")


def read(fork: Path, about: dict[str, Any]) -> tuple[dict[str, float], dict[str, NDArray[np.float32]]] | None:
    """What was measured so; None where nothing was. Raises ValueError where it is damaged."""
    if not (fork / VALUES).is_file():
        return None
    found = checksums.read_sealed(fork / VALUES)
    if found.get("about") != about:
        return None
    try:
        with np.load(fork / ARRAYS) as arrays:
            return dict(found["values"]), {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{fork / ARRAYS}: damaged ({error}); delete it and {VALUES}, and call the same again") from error


def sec(fork: Path) -> float | None:
    """What a finished fork took, in seconds; None for one that is not finished."""
    return float(checksums.read_sealed(fork / VALUES)["sec"]) if (fork / VALUES).is_file() else None
