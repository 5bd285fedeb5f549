"""`gsnr evaluate`: held-out velocity loss of a checkpoint, beside that of a model which ignores its input; with --frechet, the
Fréchet distance of samples to the train split in the feature space of the cache's teacher.

The reference predicts one constant, the train split's mean velocity at every position: E (eps - x_0) = -E x_0. Its loss is what a
network that has learnt nothing but the mean reaches. Every held-out image is used once at each of several stratified times.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from gsnr import commands
from gsnr.commandline import Parser, a_path, seed

if TYPE_CHECKING:
    from gsnr.train.data.cache import Header, Split
    from gsnr.train.runs.checkpoint import Checkpoint

TIMES = 10  # strata of t each image is evaluated in
HEUN_STEPS = 12  # of a sample for the Fréchet distance
LEAST_SAMPLES = 64


def evaluate(
    ckpt: Path, weights: str = "ema", n_images: int | None = None, seed: int = 0, frechet: int = 0, data: str | None = None
) -> dict[str, Any]:
    """What the command prints. Raises ValueError for anything missing, damaged or mismatched."""
    from gsnr.train import opening, vae
    from gsnr.train.data.heldout import require

    loaded = opening.last_checkpoint(ckpt, weights)
    header, splits = opening.data_of(loaded, data, features=False)
    if frechet and "teacher" not in header.groups:
        raise ValueError("--frechet: the data hold no teacher's features; prepare them with --teacher")
    if frechet:
        vae.load(header.vae).require_decoder(f"--frechet {frechet}")
    if n_images is not None:
        require(splits["heldout"], n_images)
    images = splits["heldout"].size if n_images is None else n_images
    per_image = velocity_losses(loaded.model, splits, images, seed)
    loss, reference = per_image["model"], per_image["constant"]
    result = {
        "checkpoint": str(loaded.folder),
        "step": loaded.step,
        "weights": weights,
        "heldout_images": images,
        "velocity_loss": round(float(loss.mean()), 5),
        "velocity_loss_se": round(float(loss.std(ddof=1) / np.sqrt(images)), 5),
        "input_blind_loss": round(float(reference.mean()), 5),
        "ratio": round(float(loss.mean() / reference.mean()), 5),
    }
    return result | _frechet(loaded, header, splits, frechet, seed) if frechet else result


def mean_latent(train: Split) -> NDArray[np.float64]:
    """(C,h,w): the mean of the train split's final latents."""
    total = np.zeros(train.header.latent_shape)
    for start in range(0, train.size, 1024):
        index = np.arange(start, min(start + 1024, train.size), dtype=np.int64)
        total += train.take(index, ("mean",))["mean"].sum(0, dtype=np.float64)
    return train.header.scaling.final(total / train.size)


@torch.no_grad()
def velocity_losses(model: nn.Module, splits: dict[str, Split], images: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """name -> (images,): the loss of each held-out image over t, of the model and of the constant."""
    from gsnr.train import interpolant
    from gsnr.train.data.heldout import heldout_batches

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    constant = -torch.from_numpy(mean_latent(splits["train"])).float().to(device)
    per_image = {"model": np.zeros(images), "constant": np.zeros(images)}
    for low, high in tqdm(list(pairwise(np.linspace(0, 1, TIMES + 1))), desc="evaluating", unit="bin", leave=False):
        first = 0
        for _, drawn in heldout_batches(splits["heldout"], images, seed, "evaluate", low, high, ()):
            batch = {key: x.to(device) for key, x in drawn.items()}
            v = interpolant.velocity(batch["latent"], batch["noise"])
            x_t = interpolant.interpolate(batch["latent"], batch["noise"], batch["t"])
            rows = slice(first, first + len(v))
            first += len(v)
            for name, guess in (("model", model(x_t, batch["t"], batch["label"])), ("constant", constant)):
                per_image[name][rows] += interpolant.velocity_loss(guess, v).cpu().numpy() / TIMES
    return per_image


def _frechet(loaded: Checkpoint, header: Header, splits: dict[str, Split], samples: int, seed: int) -> dict[str, Any]:
    """What --frechet adds: the distance of samples, and that of held-out images, to the train split."""
    from gsnr.train.frechet import Gaussian, cached_features, distance, sampled_features

    train = Gaussian.of(cached_features(splits["train"]))
    sampled = distance(Gaussian.of(sampled_features(loaded, header, samples, HEUN_STEPS, seed)), train)
    heldout = cached_features(splits["heldout"])
    return {
        "teacher": header.teacher,
        "frechet_samples": samples,
        "frechet_sampler": f"Heun ODE, {HEUN_STEPS} steps, no guidance",
        "frechet": round(sampled, 4),
        "frechet_heldout": round(distance(Gaussian.of(heldout), train), 4),
        "frechet_heldout_images": len(heldout),
    }


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr evaluate", __doc__)
    parser.add_argument("--ckpt", type=a_path, required=True, metavar="DIR", help="run folder or checkpoint folder")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default: ema)")
    parser.add_argument("--data", metavar="CACHE", help="cache to evaluate on (default: the one the checkpoint was trained on)")
    parser.add_number("--n-images", None, "held-out images (default: all)", low=2, high=10**9)
    parser.add_number("--frechet", 0, "also draw N samples for the Fréchet distance; 0 for none", low=0, high=10**6)
    parser.add_argument("--seed", type=seed, default=0, help="seed of times, noise and samples (default: 0)")
    return parser


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.frechet and args.frechet < LEAST_SAMPLES:
        parser.error(f"--frechet must be 0 or at least {LEAST_SAMPLES}")
    print(json.dumps(evaluate(args.ckpt, args.weights, args.n_images, args.seed, args.frechet, args.data), indent=2))
    return 0


if __name__ == "__main__":
    commands.run("evaluate")
