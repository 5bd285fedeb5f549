"""`gsnr fit-demo-vae`: trains the demo's VAE from nothing, or measures the one that is shipped.

A narrow diffusers AutoencoderKL: SD-VAE's architecture at one eighth of its width (1.3 M parameters; 64x64x3 -> 8x8x4 latents, so
the same factor of 8 and the same 15 encoder layers). The repository ships what this command wrote: fp16 safetensors, the diffusers
`config.json` with the measured `scaling_factor`, and `made.json`, which says how it was made and what it reaches.

Shapes: B batch, H = W = 64 image, C = 3; pixels in [-1, 1].
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gsnr import commands, files
from gsnr.commandline import Parser, a_path, seed
from gsnr.train import vae as vaes
from gsnr.train.demo import images as demo
from gsnr.train.priors.features import to_pixels
from gsnr.train.sample import write as write_picture
from gsnr.train.vae import DEMO_FOLDER

ARCHITECTURE = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 64),
    layers_per_block=2,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=demo.RESOLUTION,
)
TRAIN_IMAGES = 16384  # compositions the VAE trains on: the train split, many backgrounds to a scan
KL_WEIGHT = 1e-6  # per image, summed over the latent, as in latent diffusion (Rombach et al. 2022)
HELDOUT = 512


def psnr_db(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Per-image peak signal-to-noise ratio in dB, (B,), of images in [-1, 1] clipped to that range and rounded to 8 bits."""
    eight_bit = lambda z: ((z.clamp(-1, 1) + 1) * 127.5).round() / 255.0
    mse_B = (eight_bit(x_BCHW) - eight_bit(y_BCHW)).square().flatten(1).mean(1)
    return -10.0 * torch.log10(mse_B)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x_BCHW: Tensor, batch: int = 64) -> Tensor:
    """Decoded posterior means, same shape and range as the input."""
    return torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample for x in x_BCHW.split(batch)])


@torch.no_grad()
def latent_std(vae: AutoencoderKL, x_BCHW: Tensor, seed: int) -> float:
    """Standard deviation of posterior samples over all elements; its inverse is diffusers' `scaling_factor`."""
    generator = torch.Generator().manual_seed(seed)
    return float(torch.cat([vae.encode(x).latent_dist.sample(generator) for x in x_BCHW.split(64)]).std())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 3 % of the steps, then a half cosine to zero."""
    warm = max(1, int(0.03 * steps))
    return peak * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def fit(steps: int, batch: int, lr: float, seed: int) -> AutoencoderKL:
    """Trains on the demo's train split: mean squared error plus a small KL term, AdamW, bf16 autocast."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**ARCHITECTURE)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=0.0)
    images = to_pixels(demo.images("train", TRAIN_IMAGES, seed=seed + 1)[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae.to(device).train()
    bar = tqdm(range(steps), desc="demo VAE", unit="step", mininterval=2.0)
    for step in bar:
        rng = np.random.default_rng([seed, step])
        x = images[rng.integers(len(images), size=batch)].to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            reconstruction = vae.decode(posterior.sample()).sample
        mse = (reconstruction.float() - x).square().mean()
        kl = posterior.kl().float().mean()
        optimizer.zero_grad(set_to_none=True)
        (mse + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            bar.set_postfix(mse=f"{mse.item():.4f}", kl=f"{kl.item():.0f}")
    return vae.to("cpu").eval()


def save(vae: AutoencoderKL, out: Path, made: dict) -> dict:
    """Makes the VAE's folder; returns what `made.json` says."""
    train_images = to_pixels(demo.images("train", 1024)[0])
    vae.register_to_config(scaling_factor=round(1.0 / latent_std(vae, train_images, seed=0), 4))
    return write(vae, out, made, measure)


def write(model: ModelMixin, out: Path, made: dict, measured: Callable[[Path], dict]) -> dict:
    """Makes the folder of a demo model: fp16 weights, config and `made.json`, with what is measured of the weights as they will be read back."""
    with files.making(out) as aside:
        model.half().save_pretrained(aside)
        weights = (aside / "diffusion_pytorch_model.safetensors").read_bytes()
        made = made | {"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_bytes": len(weights)} | measured(aside)
        (aside / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    return made


def measure(folder: Path) -> dict:
    """Held-out reconstruction of the VAE in a folder: mean, standard deviation and minimum of per-image PSNR in dB."""
    x = to_pixels(demo.images("heldout", HELDOUT)[0])
    db = psnr_db(reconstruct(vaes.load(str(folder)).model, x), x)
    return {
        "heldout_images": len(db),
        "heldout_psnr_db_mean": round(float(db.mean()), 3),
        "heldout_psnr_db_std": round(float(db.std()), 3),
        "heldout_psnr_db_min": round(float(db.min()), 3),
    }


def picture(folder: Path, path: Path, columns: int = 12) -> None:
    """Held-out images above their reconstructions, as one PNG."""
    x = to_pixels(demo.images("heldout", columns)[0])
    rows = [((z.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy() for z in (x, reconstruct(vaes.load(str(folder)).model, x))]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    write_picture(Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST), path)


def check_new(out: Path) -> None:
    """Raises ValueError, naming the flag, where there is something, or nothing can be written."""
    if out.exists() and (not out.is_dir() or not all(map(files.left_behind, out.iterdir()))):
        raise ValueError(f"--out {out}: is not empty; name a new folder, or measure what is there with --check")
    files.check_writable(out, "--out")


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr fit-demo-vae", __doc__)
    parser.add_argument("--check", action="store_true", help="measure the VAE in --out (the shipped one by default) and stop")
    parser.add_argument("--picture", type=a_path, help="also write held-out images above their reconstructions to this PNG")
    parser.add_argument("--out", type=a_path, default=DEMO_FOLDER, help="folder to write or to check (default: the shipped one)")
    parser.add_number("--steps", 4500, "training steps", low=1, high=10**7)
    parser.add_number("--batch", 16, "images a step", low=1, high=4096)
    parser.add_number("--lr", 0.0015, "peak learning rate", low=0, high=1, of=float, metavar="LR")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="seed of everything random (default: 0)")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.picture:
        files.check_output(args.picture, "--picture", ".png")
    if args.check:
        result = measure(args.out)
    else:
        check_new(args.out)
        start = time.time()
        vae = fit(args.steps, args.batch, args.lr, args.seed)
        recipe = {k: getattr(args, k) for k in ("steps", "batch", "lr", "seed")}
        recipe |= {"loss": f"mse + {KL_WEIGHT} * kl", "train_images": TRAIN_IMAGES, "demo_data_version": demo.VERSION}
        recipe |= {"minutes": round((time.time() - start) / 60, 1), "torch": torch.__version__}
        result = save(vae, args.out, recipe)
    print(json.dumps(result, indent=2))
    if args.picture:
        picture(args.out, args.picture)
        print(f"wrote {args.picture}")
    return 0


if __name__ == "__main__":
    commands.run("fit-demo-vae")
