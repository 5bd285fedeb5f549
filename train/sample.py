"""`gsnr sample`: draws images from a checkpoint by integrating the probability-flow ODE, and writes one grid.

dx/dt = v(x, t) from t = 1 (noise) to t = 0 (data), Heun's method (second order), state in float64. Classifier-free guidance
v = v_null + w (v_class - v_null). Shapes: B images, (C,h,w) latent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

from gsnr import commands, files
from gsnr.commandline import Parser, a_path, seed
from gsnr.train import samplers
from gsnr.train.config import ModelConfig
from gsnr.train.data.latents import Scaling
from gsnr.train.guidance import Guidance, velocity_of
from gsnr.train.samplers import Velocity
from gsnr.train.vaes import FrozenVAE

MOST_IMAGES = 4096  # in one grid, which is drawn in memory


def watched(velocity: Velocity, bar: tqdm) -> Velocity:
    """The same, counting evaluations on a progress bar."""

    def told(x_BCHW: Tensor, t: float) -> Tensor:
        bar.update()
        return velocity(x_BCHW, t)

    return told


def grid_image(images_RKHWC: np.ndarray, labels: list[str], scale: int = 2) -> Image.Image:
    """R rows of K uint8 images with a label before each row."""
    rows, columns, h, w, _ = images_RKHWC.shape
    margin = 24
    sheet = Image.new("RGB", (margin + columns * w * scale, rows * h * scale), "white")
    body = Image.fromarray(images_RKHWC.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3))
    sheet.paste(body.resize((columns * w * scale, rows * h * scale), Image.Resampling.NEAREST), (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        draw.text((margin // 2, (row + 0.5) * h * scale), label, fill="black", anchor="mm")
    return sheet


@torch.no_grad()
def decode(frozen: FrozenVAE, latents_BCHW: Tensor, scaling: Scaling, seed: int) -> np.ndarray:
    """Final latents -> (B,H,W,3) uint8; a function of (latents, seed): a Consistency decoder draws noise.

    The global random state stays as it was.
    """
    device = latents_BCHW.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        pixels = torch.cat([frozen.decode(part) for part in scaling.raw(latents_BCHW.float()).split(16)])
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def picture(
    model: nn.Module,
    frozen: FrozenVAE,
    shape: ModelConfig,
    scaling: Scaling,
    *,
    classes: int,
    per_class: int,
    steps: int,
    guidance: float,
    seed: int,
    quiet: bool = False,
) -> Image.Image:
    """The first `classes` classes in rows; a function of (weights, seed). Raises ValueError for samples that are not finite."""
    device = next(model.parameters()).device
    classes = min(classes, shape.num_classes)
    y_B = torch.arange(classes, device=device).repeat_interleave(per_class)
    noise = torch.randn(len(y_B), shape.in_channels, shape.input_size, shape.input_size, generator=torch.Generator().manual_seed(seed)).to(device)
    velocity = velocity_of(model, y_B, shape.num_classes, Guidance(weight=guidance))
    with tqdm(total=samplers.evaluations("heun", steps), desc="sampling", unit="evaluation", leave=False, disable=quiet) as bar:
        latents = samplers.integrate("heun", watched(velocity, bar), noise, steps).float()
    if not latents.isfinite().all():
        raise ValueError(f"the samples are not finite (guidance {guidance}, {steps} steps)")
    eight_bit = decode(frozen, latents, scaling, seed)
    return grid_image(eight_bit.reshape(classes, per_class, *eight_bit.shape[1:]), [str(c) for c in range(classes)])


def write(picture: Image.Image, path: Path) -> None:
    """Replaces a PNG as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as aside:
        picture.save(aside, format="PNG")


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr sample", __doc__)
    parser.add_argument("--ckpt", type=a_path, required=True, metavar="DIR", help="run folder or checkpoint folder")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default: ema)")
    parser.add_argument("--vae", metavar="ID", help="VAE that decodes (default: the one the checkpoint names)")
    parser.add_number("--per-class", 8, "images a class", low=1, high=MOST_IMAGES)
    parser.add_number("--classes", None, "the first N classes (default: 10, or as many as there are)", low=1, high=MOST_IMAGES)
    parser.add_number("--sampling-steps", 50, "Heun steps", low=1, high=100000)
    parser.add_number("--cfg", 1.0, "guidance weight; 1 is none", low=-1000, high=1000, of=float, metavar="W")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--out", type=a_path, metavar="PNG", help="file to write (default: RUN/figures/samples.png)")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.per_class * (args.classes or 10) > MOST_IMAGES:
        raise ValueError(f"--per-class {args.per_class}: at most {MOST_IMAGES} images in one grid, and there are {args.classes or 10} classes")
    if args.out is not None:
        files.check_output(args.out, "--out", ".png")

    from gsnr.train import opening, vae
    from gsnr.train.runs import checkpoint

    loaded = opening.last_checkpoint(args.ckpt, args.weights)
    out = args.out or checkpoint.run_output(loaded, "figures") / "samples.png"
    files.check_output(out, "--out", ".png")
    header, shape = loaded.header, loaded.config.model
    if (args.classes or 1) > shape.num_classes:
        raise ValueError(f"--classes {args.classes}: {loaded.folder} has {shape.num_classes}")
    name = args.vae if header is None else args.vae or header.vae
    if name is None:
        raise ValueError(f"{loaded.folder}: does not say which VAE decodes its latents; name one with --vae")
    frozen = vae.load(name)
    frozen.require_decoder("gsnr sample")
    if header is not None and frozen.sha != header.vae_sha:
        raise ValueError(f"--vae {frozen.name}: not the VAE this checkpoint was trained with ({header.vae})")
    if frozen.channels != shape.in_channels:
        raise ValueError(f"--vae {frozen.name}: decodes latents of {frozen.channels} channels; the model has {shape.in_channels}")
    scaling = checkpoint.decoding(loaded)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen.model.to(device)
    drawn = picture(
        loaded.model.to(device),
        frozen,
        shape,
        scaling,
        classes=args.classes or 10,
        per_class=args.per_class,
        steps=args.sampling_steps,
        guidance=args.cfg,
        seed=args.seed,
    )
    try:
        write(drawn, out)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from error
    sampler = f"Heun ODE, {args.sampling_steps} steps, cfg {args.cfg}"
    print(f"wrote {out}: {args.per_class} samples a class of {args.weights} weights at step {loaded.step}, {sampler}")
    return 0


if __name__ == "__main__":
    commands.run("sample")
