"""`gsnr fit-demo-teacher`: trains the demo's image teacher from nothing, or measures the one that is shipped.

A small residual classifier of the demo's ten digits (`gsnr.train.models.convnet`); its last map, 128 channels on 8x8, is what an
alignment or a Fréchet distance takes. The repository ships what this command wrote: fp16 safetensors, the diffusers `config.json`,
and `made.json`, which says how it was made and what it reaches.

Shapes: B batch, H = W = 64 image, C = 3; pixels in [-1, 1].
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
from gsnr.train import teacher as teachers
from gsnr.train.demo import images as demo
from gsnr.train.demo.fit_vae import check_new, learning_rate, write
from gsnr.train.models.convnet import ConvNet
from gsnr.train.priors.features import to_pixels
from gsnr.train.teacher import DEMO_FOLDER

TRAIN_IMAGES = 16384  # compositions it trains on: the train split, many backgrounds to a scan
WEIGHT_DECAY = 0.05
TURN_RAD, STRETCH, SHIFT = 0.2, 0.15, 0.1  # how far an image is turned, stretched along each axis and shifted (1 = half a side)
HELDOUT = 512


def moved(x_BCHW: Tensor, turn_B: np.ndarray, scale_B2: np.ndarray, shift_B2: np.ndarray, padding_mode: str) -> Tensor:
    """Every image turned (radians), stretched along each axis and shifted (1 = half a side)."""
    rotation_B22 = np.stack([np.cos(turn_B), -np.sin(turn_B), np.sin(turn_B), np.cos(turn_B)], axis=1).reshape(len(x_BCHW), 2, 2)
    affine_B23 = np.concatenate([rotation_B22 * scale_B2[:, :, None], shift_B2[:, :, None]], axis=2)
    where_BHW2 = F.affine_grid(torch.from_numpy(affine_B23).to(x_BCHW), list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, where_BHW2, padding_mode=padding_mode, align_corners=False)


def jitter(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Every image turned, stretched and shifted a little, mirrored where it leaves its frame."""
    n = len(x_BCHW)
    turn_B, scale_B2, shift_B2 = (
        rng.uniform(-TURN_RAD, TURN_RAD, n),
        rng.uniform(1 - STRETCH, 1 + STRETCH, (n, 2)),
        rng.uniform(-SHIFT, SHIFT, (n, 2)),
    )
    return moved(x_BCHW, turn_B, scale_B2, shift_B2, "reflection")


def fit(steps: int, batch: int, lr: float, seed: int) -> ConvNet:
    """Trains on the demo's train split: cross entropy, AdamW, bf16 autocast."""
    torch.manual_seed(seed)
    net = ConvNet(num_classes=demo.NUM_CLASSES)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    images, labels = demo.images("train", TRAIN_IMAGES, seed=seed + 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.to(device).train()
    bar = tqdm(range(steps), desc="demo teacher", unit="step", mininterval=2.0)
    for step in bar:
        rng = np.random.default_rng([seed, step])
        drawn = rng.integers(TRAIN_IMAGES, size=batch)
        x, y = jitter(to_pixels(images[drawn]).to(device), rng), torch.from_numpy(labels[drawn]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        with torch.autocast(device, torch.bfloat16):
            logits = net.logits(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.to("cpu").eval()


@torch.no_grad()
def correct(net: ConvNet, images_NHWC: np.ndarray, labels_N: np.ndarray, batch: int = 64) -> Tensor:
    """bool (N,): which images the classifier names rightly."""
    predicted_N = torch.cat([net.logits(x).argmax(1) for x in to_pixels(images_NHWC).split(batch)])
    return predicted_N == torch.from_numpy(labels_N)


def measure(folder: Path) -> dict:
    """Held-out accuracy of the classifier in a folder. Raises ValueError where it holds none."""
    net = teachers.load(str(folder)).model
    if not isinstance(net, ConvNet):
        raise ValueError(f"--out {folder}: holds a {type(net).__name__}, which does not classify; name a folder that this command wrote")
    right_N = correct(net, *demo.images("heldout", HELDOUT))
    return {"heldout_images": len(right_N), "heldout_accuracy": round(float(right_N.float().mean()), 4)}


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr fit-demo-teacher", __doc__)
    parser.add_argument("--check", action="store_true", help="measure the teacher in --out (the shipped one by default) and stop")
    parser.add_argument("--out", type=a_path, default=DEMO_FOLDER, help="folder to write or to check (default: the shipped one)")
    parser.add_number("--steps", 2500, "training steps", low=1, high=10**7)
    parser.add_number("--batch", 64, "images a step", low=1, high=4096)
    parser.add_number("--lr", 0.002, "peak learning rate", low=0, high=1, of=float, metavar="LR")
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
        recipe |= {"loss": "cross entropy", "weight_decay": WEIGHT_DECAY, "jitter": [TURN_RAD, STRETCH, SHIFT]}
        recipe |= {"train_images": TRAIN_IMAGES, "demo_data_version": demo.VERSION}
        recipe |= {"minutes": round((time.time() - start) / 60, 1), "torch": torch.__version__}
        result = write(net, args.out, recipe, measure)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    commands.run("fit-demo-teacher")
