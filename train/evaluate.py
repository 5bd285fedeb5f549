"""`python -m train.evaluate`: held-out velocity loss of a checkpoint, beside that of a model which ignores its input.

The reference predicts one constant, the train split's mean velocity at every position: E (eps - x_0) = -E x_0. Its loss is what a
network that has learnt nothing but the mean reaches. Every held-out image is used once at each of several stratified times.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gsnr.commandline import Parser, run

TIMES = 10  # strata of t each image is evaluated in


def main(argv: list[str]) -> int:
    assert __doc__ is not None
    parser = Parser("python -m train.evaluate", __doc__)
    parser.add_argument("--ckpt", type=Path, required=True, metavar="DIR", help="run folder or checkpoint folder")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default: ema)")
    parser.add_argument("--n-images", type=int, metavar="N", help="held-out images (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.seed < 0 or (args.n_images is not None and args.n_images < 2):
        parser.error("--seed must not be negative and --n-images at least 2")

    from train import checkpoint, interpolant, trainer
    from train.data.heldout import heldout_batches

    loaded = checkpoint.load(args.ckpt, args.weights)
    header, splits = trainer.open_data(loaded.config)
    checkpoint.require_same_vae(loaded, header)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = loaded.model.to(device)
    train_mean = np.zeros(header.latent_shape)
    for start in range(0, splits["train"].size, 1024):
        index = np.arange(start, min(start + 1024, splits["train"].size), dtype=np.int64)
        train_mean += splits["train"].take(index, ("mean",))["mean"].sum(0, dtype=np.float64)
    constant = -torch.from_numpy(train_mean / splits["train"].size * header.scale).float().to(device)

    images = splits["heldout"].size if args.n_images is None else args.n_images
    per_image = {"model": np.zeros(images), "constant": np.zeros(images)}
    edges = np.linspace(0, 1, TIMES + 1)
    with torch.no_grad():
        for low, high in tqdm(list(pairwise(edges)), desc="evaluating", unit="bin", leave=False):
            first = 0
            for _, batch in heldout_batches(splits["heldout"], images, args.seed, "evaluate", low, high, ()):
                batch = {key: x.to(device) for key, x in batch.items()}
                v = interpolant.velocity(batch["latent"], batch["noise"])
                x_t = interpolant.interpolate(batch["latent"], batch["noise"], batch["t"])
                rows = slice(first, first + len(v))
                first += len(v)
                for name, guess in (("model", model(x_t, batch["t"], batch["label"])), ("constant", constant)):
                    per_image[name][rows] += (guess - v).square().flatten(1).mean(1).cpu().numpy() / TIMES
    loss, reference = per_image["model"], per_image["constant"]
    result = {
        "checkpoint": str(loaded.folder),
        "step": loaded.step,
        "weights": args.weights,
        "heldout_images": images,
        "velocity_loss": round(float(loss.mean()), 5),
        "velocity_loss_se": round(float(loss.std(ddof=1) / np.sqrt(images)), 5),
        "input_blind_loss": round(float(reference.mean()), 5),
        "ratio": round(float(loss.mean() / reference.mean()), 5),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    run(main)
