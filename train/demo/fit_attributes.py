"""`gsnr fit-demo-attributes`: trains the network that names what an image of the demo with captions shows, or measures the one that is shipped.

It is fitted on the train split with every combination, as it is and as the demo's VAE gives it back, since generated images come from that decoder.
The repository ships fp16 safetensors, the diffusers `config.json`, and `made.json`: how it was made and what it reaches on scans it never saw.

Shapes: B batch, H = W = 64 image, A attributes; pixels in [-1, 1].
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gsnr import commands
from gsnr.commandline import Parser, a_path, seed
from gsnr.train import vae as vaes
from gsnr.train.demo import attributes, captioned
from gsnr.train.demo.captions import ATTRIBUTES
from gsnr.train.demo.fit_teacher import moved
from gsnr.train.demo.fit_vae import check_new, learning_rate, reconstruct, write
from gsnr.train.priors.features import to_pixels

TRAIN_IMAGES, RECONSTRUCTED = 12288, 1536
HELDOUT = 512
WEIGHT_DECAY = 0.05
TURN_RAD, STRETCH = 0.12, 0.08  # how far a digit is turned and stretched, about the image's centre: places stay what they are
GAIN, NOISE = 0.1, 0.05  # of each channel, and of each pixel


def jitter(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Every image turned, stretched, tinted a little, and noisy."""
    n = len(x_BCHW)
    turn_B, scale_B2 = rng.uniform(-TURN_RAD, TURN_RAD, n), rng.uniform(1 - STRETCH, 1 + STRETCH, (n, 2))
    placed = moved(x_BCHW, turn_B, scale_B2, np.zeros((n, 2)), "border")
    gain = torch.from_numpy(rng.uniform(1 - GAIN, 1 + GAIN, (n, 3, 1, 1))).to(x_BCHW)
    return (placed + 1) * gain - 1 + NOISE * torch.from_numpy(rng.standard_normal(x_BCHW.shape, dtype=np.float32))


def data(seed: int) -> tuple[Tensor, Tensor]:
    """(images (N,3,64,64), numbers (N,A)): the train split, then as many reconstructions of its first images as make up an equal part."""
    made = captioned.images("train", TRAIN_IMAGES, seed=seed, every=True)
    x, y = to_pixels(made.images), torch.from_numpy(made.numbers)
    back = reconstruct(vaes.load("demo").model, x[:RECONSTRUCTED])
    return torch.cat([x, back]), torch.cat([y, y[:RECONSTRUCTED]])


def fit(steps: int, batch: int, lr: float, seed: int) -> attributes.AttributeNet:
    """Trains on the train split: the sum of the attributes' cross entropies, AdamW; half of each batch are reconstructions."""
    torch.manual_seed(seed)
    net = attributes.AttributeNet().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    images, numbers_NA = data(seed + 1)
    n = len(images) - min(RECONSTRUCTED, TRAIN_IMAGES)
    bar = tqdm(range(steps), desc="demo attributes", unit="step", mininterval=2.0)
    for step in bar:
        rng = np.random.default_rng([seed, step])
        drawn = np.concatenate([rng.integers(n, size=batch - batch // 2), rng.integers(n, len(images), size=batch // 2)])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        logits = net(jitter(images[drawn], rng))
        losses = [F.cross_entropy(logits[name], numbers_NA[drawn, k]) for k, name in enumerate(ATTRIBUTES)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval()


@torch.no_grad()
def accuracies(net: attributes.AttributeNet, images_BCHW: Tensor, numbers_NA: np.ndarray) -> dict[str, float]:
    """attribute, and "all": the fraction that is named rightly."""
    right_NA = torch.cat([net.named(x) for x in images_BCHW.split(64)]) == torch.from_numpy(numbers_NA)
    found = {name: right_NA[:, k] for k, name in enumerate(ATTRIBUTES)} | {"all": right_NA.all(1)}
    return {name: round(float(right.double().mean()), 4) for name, right in found.items()}


def measure(folder: Path) -> dict:
    """Held-out accuracy of the network in a folder, of images as they are and as the VAE gives them back. Raises ValueError where it holds none."""
    net = attributes.load(folder)
    made = captioned.images("heldout", HELDOUT, every=True)
    x = to_pixels(made.images)
    back = reconstruct(vaes.load("demo").model, x)
    return {
        "heldout_images": len(x),
        "heldout_accuracy": accuracies(net, x, made.numbers),
        "heldout_accuracy_of_reconstructions": accuracies(net, back, made.numbers),
    }


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr fit-demo-attributes", __doc__)
    parser.add_argument("--check", action="store_true", help="measure the network in --out (the shipped one by default) and stop")
    parser.add_argument("--out", type=a_path, default=attributes.FOLDER, help="folder to write or to check (default: the shipped one)")
    parser.add_number("--steps", 1200, "training steps", low=1, high=10**7)
    parser.add_number("--batch", 64, "images a step", low=2, high=4096)
    parser.add_number("--lr", 0.003, "peak learning rate", low=0, high=1, of=float, metavar="LR")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="seed of everything random (default: 0)")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.check:
        result = measure(args.out)
    else:
        check_new(args.out)
        start = time.time()
        net = fit(args.steps, args.batch, args.lr, args.seed)
        recipe = {k: getattr(args, k) for k in ("steps", "batch", "lr", "seed")}
        recipe |= {"loss": "cross entropy, summed over attributes", "weight_decay": WEIGHT_DECAY, "jitter": [TURN_RAD, STRETCH, GAIN, NOISE]}
        recipe |= {"train_images": TRAIN_IMAGES, "reconstructed": RECONSTRUCTED, "captioned_version": captioned.VERSION}
        recipe |= {"minutes": round((time.time() - start) / 60, 1), "torch": torch.__version__}
        result = write(net, args.out, recipe, measure)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    commands.run("fit-demo-attributes")
