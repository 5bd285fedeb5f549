"""`gsnr sample`: draws images from a checkpoint.

    gsnr sample --ckpt RUN                                           a PNG of a few images of each class, or caption
    gsnr sample --ckpt RUN --n 50000 --out samples.npz               an npz as ADM's evaluator reads it, or a folder of PNGs
    gsnr sample --grid --ckpt A B C --classes 1,5,207 --out it.png   several checkpoints from the same noise

From t = 1 (noise) to t = 0 (data), state in float64. Guidance: v = v_null + w (v_y - v_null), y the class or the caption. A model that reads text
has --prompts or --data in place of --classes. With --n, sample i is a function of (seed, i), and of the i-th caption in turn, whatever the number of
processes (torchrun --nproc-per-node P -m -- train.sample ...), and however often it was stopped: the same command goes on.
Another --batch changes the last bits (1e-4 of a latent), for matrix products round by their shape.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from gsnr import commands, files
from gsnr.commandline import Parser, a_cache, a_path, choose, seed
from gsnr.train import samplers
from gsnr.train.config import ModelConfig
from gsnr.train.data.latents import Scaling
from gsnr.train.guidance import Guidance, velocity_of
from gsnr.train.models.backbone import Backbone
from gsnr.train.runs import checkpoint
from gsnr.train.samplers import Velocity
from gsnr.train.sampling import comparison, eight_bit, estimate, output, prompts, recipe, run, subject
from gsnr.train.sampling.prompts import Prompts
from gsnr.train.sampling.recipe import Recipe
from gsnr.train.vaes import FrozenVAE

MOST_IMAGES = 4096  # in one grid, which is drawn in memory
MODES = {  # which of --n, --grid and neither an option goes with, where not all
    **dict.fromkeys(("--uint8", "--batch", "--shard", "--dry-run"), ("--n",)),
    **dict.fromkeys(("--precision", "--tf32"), ("--n", "--grid")),
    "--data": ("--n", ""),
    "--at-steps": ("--grid",),
    "--per-class": ("",),
}


def watched(velocity: Velocity, bar: tqdm) -> Velocity:
    """The same, counting evaluations on a progress bar."""

    def told(x: samplers.State, t: float) -> samplers.State:
        bar.update()
        return velocity(x, t)

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
    return eight_bit.to_uint8(pixels, "round")


def conditions_of(shape: ModelConfig, rows: int, captions: Prompts | None) -> Tensor:
    """The first so many classes, or the states of the first prompts of a model that reads text; no more than there are."""
    if captions is None:
        return torch.arange(min(rows, shape.num_classes))
    return captions.states(np.arange(min(rows, len(captions.texts)), dtype=np.int64))


def picture(
    model: Backbone,
    frozen: FrozenVAE,
    shape: ModelConfig,
    scaling: Scaling,
    conditions: Tensor,
    *,
    per_class: int,
    steps: int | None,
    guidance: Guidance,
    seed: int,
    sampler: str = "heun",
    quiet: bool = False,
) -> Image.Image:
    """A row of `per_class` samples for each of `conditions_of`; a function of (weights, conditions, seed). Raises ValueError for samples that are not
    finite."""
    device = next(model.parameters()).device
    rows, y = len(conditions), conditions.to(device).repeat_interleave(per_class, dim=0)
    noise = torch.randn(len(y), shape.in_channels, shape.input_size, shape.input_size, generator=torch.Generator().manual_seed(seed)).to(device)
    velocity = velocity_of(model, y, guidance)
    size, numbers = (shape.in_channels, shape.input_size, shape.input_size), np.arange(len(y), dtype=np.int64)
    steps_noise = samplers.noise_of(seed, numbers, size, device, shape.extra_token)
    start = noise if shape.extra_token is None else (noise, steps_noise(0)[1])
    with tqdm(total=samplers.evaluations(sampler, steps), desc="sampling", unit="evaluation", leave=False, disable=quiet) as bar:
        latents = samplers.latents_of(samplers.integrate(sampler, watched(velocity, bar), start, steps, steps_noise)).float()
    if not latents.isfinite().all():
        raise ValueError(f"the samples are not finite (guidance {guidance.weight}, {steps} steps)")
    eight_bit = decode(frozen, latents, scaling, seed)
    return grid_image(eight_bit.reshape(rows, per_class, *eight_bit.shape[1:]), [str(number) for number in range(rows)])


def write(picture: Image.Image, path: Path) -> None:
    """Replaces a PNG as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as aside:
        picture.save(aside, format="PNG")


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr sample", __doc__)
    parser.add_argument(
        "--ckpt", type=a_path, required=True, nargs="+", action="extend", metavar="DIR", help="run or checkpoint folder; --grid: several"
    )
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default: ema)")
    parser.add_argument("--vae", metavar="ID", help="VAE that decodes (default: the one the checkpoint names)")
    parser.add_argument("--sampler", default="heun", metavar="NAME", help="euler, heun, dopri5, sde (REPA's), sde_sit (SiT's) (default: heun)")
    parser.add_number("--sampling-steps", None, "steps (default: heun 50; euler, sde and sde_sit 250; dopri5 decides)", low=1, high=100000)
    parser.add_number("--cfg", 1.0, "guidance weight; 1 is none", low=1, high=1000, of=float, metavar="W")
    parser.add_argument(
        "--cfg-interval", default="0,1", metavar="LOW,HIGH", help="t within which it guides, ends included; t=1 is noise (default: 0,1)"
    )
    parser.add_number("--cls-cfg", None, "guidance weight of a model's class token (REG; default: as --cfg)", low=1, high=1000, of=float)
    parser.add_argument("--cls-cfg-interval", metavar="LOW,HIGH", help="t within which the class token is guided (default: as --cfg-interval)")
    parser.add_argument("--guide-channels", default="all", metavar="all|N", help="guide the first N latent channels; SiT: 3 (default: all)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--out",
        type=a_path,
        metavar="PATH",
        help="PNG to write or replace (default: RUN/figures/samples.png); --n: a new .npz or folder of PNGs",
    )
    parser.add_argument("--classes", metavar="N", help="the first N (default: 10, or all); --n: balanced, random or A,B,...; --grid: A,B,...")
    parser.add_argument("--prompts", type=a_path, metavar="FILE", help="captions, one a line, of a model that reads text (docs/text.md)")
    parser.add_argument("--text-encoder", metavar="ID", help="of --prompts: folder or hub id (default: the one that the checkpoint's data name)")
    parser.add_argument("--data", type=a_cache, metavar="CACHE", help="of a model that reads text: held-out captions of it (default: its own)")
    parser.add_number("--per-class", 8, "images a class, or caption", low=1, high=MOST_IMAGES)
    parser.add_argument("--grid", action="store_true", help="one PNG of several checkpoints from the same noise: a row each, a column a class")
    parser.add_argument("--at-steps", metavar="A,B", help="--grid: a column for each of these steps of the runs, too")
    parser.add_number("--n", None, "samples to draw for an evaluation, into --out", low=1, high=10**7)
    parser.add_argument("--uint8", default="repa", metavar="RULE", help="--n: how pixels become uint8: repa, sit, round (default: repa)")
    parser.add_argument("--precision", default="no", metavar="P", help="--n, --grid: autocast of the model: no, bf16 or fp16 (default: no)")
    parser.add_argument("--tf32", action="store_true", help="--n, --grid: float32 products may take TF32")
    parser.add_number("--batch", None, "--n: samples in one pass (default: 16; with a GPU 64; dopri5: 32, fixed)", low=1, high=2**16)
    parser.add_number("--shard", 128, "--n: samples that a kill may lose, of each process", low=1, high=2**20)
    parser.add_argument("--dry-run", action="store_true", help="--n: only say how long it would take")
    return parser


def _of_token(args: argparse.Namespace) -> Guidance | None:
    """What the class token is guided by; None for as the latents are. Raises ValueError naming the flags."""
    if args.cls_cfg is None and args.cls_cfg_interval is None:
        return None
    weight, interval = args.cfg if args.cls_cfg is None else args.cls_cfg, args.cls_cfg_interval or args.cfg_interval
    if weight == 1 and args.cls_cfg is None:
        raise ValueError(f"--cls-cfg-interval {interval}: nothing guides within it; add --cls-cfg W or --cfg W")
    try:
        low, high = (float(word) for word in interval.split(","))
        return Guidance(weight=weight, low=low, high=high)
    except ValueError as error:
        raise ValueError(f"--cls-cfg {weight}, --cls-cfg-interval {interval}: {error}") from error


def _guidance(args: argparse.Namespace) -> Guidance:
    """Raises ValueError naming the flag."""
    token, flags = _of_token(args), f"--cfg-interval {args.cfg_interval}, --guide-channels {args.guide_channels}"
    try:
        low, high = (float(word) for word in args.cfg_interval.split(","))
        channels = None if args.guide_channels == "all" else int(args.guide_channels)
    except ValueError:
        raise ValueError(f"{flags}: LOW,HIGH and all or a whole number are needed") from None
    try:
        made = Guidance(weight=args.cfg, low=low, high=high, channels=channels, token=token)
    except ValueError as error:
        raise ValueError(f"--cfg {args.cfg}, {flags}: {error}") from error
    if not made.used and (low, high, channels) != (0, 1, None):
        raise ValueError(f"{flags}: change nothing without guidance; add --cfg W")
    return made


def _steps(args: argparse.Namespace) -> int | None:
    """Raises ValueError for an unknown sampler, and for steps where its solver decides."""
    default = samplers.steps_of(args.sampler)
    if default is None and args.sampling_steps is not None:
        raise ValueError(f"--sampling-steps {args.sampling_steps}: sampler {args.sampler!r} decides on its steps; leave it out")
    return args.sampling_steps or default


def _listed(text: str) -> tuple[int, ...]:
    """Classes or steps of a list. Raises ValueError naming what is none."""
    for word in text.split(","):
        if not (word.isascii() and word.isdigit()) or len(word) > 9:
            raise ValueError(f"{text!r}: {word!r} is no whole number of at least 0; a list such as 1,5,207 is needed (--n: or balanced, random)")
    return tuple(int(word) for word in text.split(","))


def _recipe(args: argparse.Namespace, classes: str | tuple[int, ...], uint8: str) -> Recipe:
    return Recipe(
        sampler=args.sampler,
        steps=_steps(args),
        guidance=_guidance(args),
        classes=classes,
        uint8=uint8,
        seed=args.seed,
        precision=args.precision,
        tf32=args.tf32,
    )


def _many(args: argparse.Namespace) -> int:
    """--n: an npz or a folder."""
    choose("--uint8", args.uint8, eight_bit.RULES)
    if args.out is None:
        raise ValueError("--n: name the file or folder to write with --out (samples.npz, or a folder for PNGs)")
    words = args.classes or "balanced"
    by = _recipe(args, words if words in recipe.RULES else _named("--classes", words), args.uint8)
    if by.together > 1 and args.batch not in (None, by.together):
        raise ValueError(f"--batch {args.batch}: sampler {args.sampler!r} solves {by.together} samples together, whatever the batch; leave it out")
    output.check_kind(args.out)

    def decide() -> run.Job:
        opened = subject.open_subject(args.ckpt[0], args.weights, args.vae, other=True)
        found = subject.with_prompts(opened, args.prompts, args.data, args.classes, args.text_encoder)
        found.check(by.guidance, by.classes if isinstance(by.classes, tuple) else ())
        batch = by.together if by.together > 1 else args.batch or (64 if torch.cuda.is_available() else 16)
        return run.Job(subject=found, recipe=by, n=args.n, out=args.out, batch=batch, shard=-(-args.shard // by.together) * by.together)

    try:
        if args.dry_run:
            job = decide()
            device, made = "cuda" if torch.cuda.is_available() else "cpu", output.is_made(args.out, job.options())
            print(f"{args.out}: already drawn with these options; nothing to do" if made else "\n".join(estimate.estimate(job, device)))
        else:
            run.run(decide, args.out)
    except torch.OutOfMemoryError as error:
        raise ValueError("--batch: too many samples for the GPU's memory; finished shards stay: run it again with a smaller one") from error
    return 0


def _named(flag: str, text: str) -> tuple[int, ...]:
    try:
        return _listed(text)
    except ValueError as error:
        raise ValueError(f"{flag} {error}") from error


def _several(args: argparse.Namespace) -> int:
    """--grid: a PNG of several checkpoints."""
    if args.out is None or (args.classes is None and args.prompts is None):
        raise ValueError("--grid: name the columns with --classes A,B,..., or --prompts FILE (models of text), and the picture with --out PNG")
    files.check_output(args.out, "--out", ".png")
    classes = tuple(range(len(prompts.read(args.prompts)))) if args.classes is None else _named("--classes", args.classes)
    steps: list[int | None] = [None] if args.at_steps is None else list(_named("--at-steps", args.at_steps))
    if len(args.ckpt) * len(classes) * len(steps) > MOST_IMAGES:
        what = f"--prompts {args.prompts}" if args.classes is None else f"--classes {args.classes}"
        raise ValueError(f"{what}: {len(args.ckpt) * len(classes) * len(steps)} images; at most {MOST_IMAGES} in one grid")
    by = _recipe(args, "balanced", "round")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = comparison.Asked(classes=classes, words=args.classes, prompts=args.prompts, encoder=args.text_encoder)
    write(comparison.comparison(args.ckpt, steps, by, asked, args.weights, args.vae, device), args.out)
    print(f"wrote {args.out}: {len(args.ckpt)} checkpoints from the same noise, {args.sampler}, cfg {args.cfg}")
    return 0


def _one(args: argparse.Namespace) -> int:
    """A PNG of the first classes of one checkpoint."""
    text = args.classes or "10"
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MOST_IMAGES:
        raise ValueError(f"--classes {text}: must be at least 1 and at most {MOST_IMAGES} (balanced, random and lists go with --n and --grid)")
    classes = int(text)
    if args.per_class * classes > MOST_IMAGES:
        raise ValueError(f"--per-class {args.per_class}: at most {MOST_IMAGES} images in one grid, and there are {classes} classes")
    guidance, steps = _guidance(args), _steps(args)
    if args.out is not None:
        files.check_output(args.out, "--out", ".png")
    opened = subject.open_subject(args.ckpt[0], args.weights, args.vae)
    found = subject.with_prompts(opened, args.prompts, args.data, args.classes, args.text_encoder)
    out = args.out or checkpoint.run_output(found.loaded, "figures") / "samples.png"
    files.check_output(out, "--out", ".png")
    if args.classes is not None and classes > found.classes:
        raise ValueError(f"--classes {classes}: {found.loaded.folder} has {found.classes}")
    found.check(guidance)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run.to_device(found, device)
    drawn = picture(
        found.loaded.model,
        found.frozen,
        found.loaded.config.model,
        found.scaling,
        conditions_of(found.loaded.config.model, classes, found.prompts),
        per_class=args.per_class,
        steps=steps,
        guidance=guidance,
        seed=args.seed,
        sampler=args.sampler,
    )
    try:
        write(drawn, out)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from error
    how = f"{args.sampler}{'' if steps is None else f', {steps} steps'}, cfg {args.cfg}"
    what, captions = ("class", ()) if found.prompts is None else ("caption", found.prompts.texts[:classes])
    for number, caption in enumerate(captions):
        print(f"row {number}: {caption}")
    print(f"wrote {out}: {args.per_class} samples a {what} of {args.weights} weights at step {found.loaded.step}, {how}")
    return 0


def _check_mode(parser: Parser, args: argparse.Namespace) -> None:
    """Raises ValueError for options of another of the three commands."""
    if args.n is not None and args.grid:
        raise ValueError("--n, --grid: are two commands; name one of them")
    if len(args.ckpt) > 1 and not args.grid:
        raise ValueError(f"--ckpt: {len(args.ckpt)} checkpoints; several go with --grid")
    mode = "--n" if args.n is not None else "--grid" if args.grid else ""
    for flag, modes in MODES.items():
        dest = flag.removeprefix("--").replace("-", "_")
        if getattr(args, dest) != parser.get_default(dest) and mode not in modes:
            raise ValueError(f"{flag}: goes with {' or '.join(filter(None, modes)) or 'neither --n nor --grid'}")


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_mode(parser, args)
    return _many(args) if args.n is not None else _several(args) if args.grid else _one(args)


if __name__ == "__main__":
    commands.run("sample")
