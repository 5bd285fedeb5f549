"""`gsnr evaluate`: held-out velocity loss of a checkpoint, or FID and its kin of a file of samples.

    gsnr evaluate --ckpt RUN                                          the loss, beside that of a model which ignores its input
    gsnr evaluate --ckpt RUN --frechet 2048 --metrics recall          also the Fréchet distance of samples to the train split, and other
                                                                      metrics, in the feature space of the cache's teacher
    gsnr evaluate --samples S.npz --reference R.npz                   FID, sFID, IS, precision, recall as ADM's evaluator takes them
    gsnr evaluate --samples DIR --reference DIR --features dinov2     in other features; docs/evaluating.md says what each number depends on
    gsnr evaluate --samples S.npz --captions C.txt --features pickscore   how well images fit their captions: pickscore, clip_score, attributes

The model which ignores its input predicts one constant, the train split's mean velocity at every position: E (eps - x_0) = -E x_0. Its loss is what a
network that has learnt nothing but the mean reaches. Every held-out image is used once at each of several stratified times.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from gsnr import commands, files, plugins
from gsnr.commandline import Parser, a_cache, a_path, listed, seed

if TYPE_CHECKING:
    from gsnr.train.data.cache import Header, Split
    from gsnr.train.models.backbone import Backbone
    from gsnr.train.runs.checkpoint import Checkpoint

TIMES = 10  # strata of t each image is evaluated in
HEUN_STEPS = 12  # of a sample for the Fréchet distance
LEAST_SAMPLES = 64


def evaluate(
    ckpt: Path,
    weights: str = "ema",
    n_images: int | None = None,
    seed: int = 0,
    frechet: int = 0,
    data: str | None = None,
    metrics: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What the command prints. Raises ValueError for anything missing, damaged or mismatched."""
    from gsnr.train import opening, vae
    from gsnr.train.data.heldout import require

    check_metrics(metrics)
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
    if "class_token" in per_image:
        result["class_token_loss"] = round(float(per_image["class_token"].mean()), 5)
    return result | _frechet(loaded, header, splits, frechet, seed, metrics) if frechet else result


def mean_latent(train: Split) -> NDArray[np.float64]:
    """(C,h,w): the mean of the train split's final latents."""
    total = np.zeros(train.header.latent_shape)
    for start in range(0, train.size, 1024):
        index = np.arange(start, min(start + 1024, train.size), dtype=np.int64)
        total += train.take(index, ("mean",))["mean"].sum(0, dtype=np.float64)
    return train.header.scaling.final(total / train.size)


@torch.no_grad()
def losses_over_time(model: Backbone, splits: dict[str, Split], images: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """name -> (TIMES, images): the loss of each held-out image in each stratum of t, of the model and of the constant; and the class token's, of a
    model with one."""
    from gsnr.train import interpolant
    from gsnr.train.data.heldout import heldout_batches
    from gsnr.train.noising import losses, noised

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    constant = -torch.from_numpy(mean_latent(splits["train"])).float().to(device)
    found = {name: np.zeros((TIMES, images)) for name in ("model", "constant", *(("class_token",) if model.has_extra else ()))}
    bins = list(enumerate(pairwise(np.linspace(0, 1, TIMES + 1))))
    for number, (low, high) in tqdm(bins, desc="evaluating", unit="bin", leave=False):
        first = 0
        for _, drawn in heldout_batches(splits["heldout"], images, seed, "evaluate", low, high, model.reads):
            batch = {key: x.to(device) for key, x in drawn.items()}
            v = interpolant.velocity(batch["latent"], batch["noise"])
            x_t, extra = noised(model, batch)
            rows = slice(first, first + len(v))
            first += len(v)
            of = losses(model(x_t, batch["t"], model.condition(batch), extra=extra), batch)
            of = {"model": of.pop("velocity"), "constant": interpolant.velocity_loss(constant, v)} | of
            for name, loss_B in of.items():
                found[name][number, rows] = loss_B.cpu().numpy()
    return found


def velocity_losses(model: Backbone, splits: dict[str, Split], images: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """name -> (images,): as `losses_over_time`, the mean over t."""
    return {name: (loss_TN / TIMES).cumsum(0)[-1] for name, loss_TN in losses_over_time(model, splits, images, seed).items()}


def check_metrics(names: tuple[str, ...]) -> None:
    """Raises ValueError for metrics that do not exist, or that a teacher's features cannot give. Imports none."""
    for name in names:
        if plugins.constant("metrics", name, "KIND") != "pool" or plugins.constant("metrics", name, "FEATURES"):
            raise ValueError(f"--metrics {name}: is of other features than a teacher's; of samples on a disk it is taken with --samples")


def check_frechet(samples: int) -> None:
    """Raises ValueError for a number of samples that no Fréchet distance is taken of."""
    if samples and samples < LEAST_SAMPLES:
        raise ValueError(f"--frechet must be 0 or at least {LEAST_SAMPLES}")


def asked_of_samples(frechet: int, metrics: str | None) -> tuple[str, ...]:
    """The names in --metrics, which are of the samples of --frechet. Raises ValueError for either that cannot be, and for one without the other."""
    check_frechet(frechet)
    names = () if metrics is None else listed("--metrics", metrics, plugins.names("metrics"))
    check_metrics(names)
    if names and not frechet:
        raise ValueError("--metrics: are of the samples of --frechet N; name a number of samples")
    return names


def _frechet(loaded: Checkpoint, header: Header, splits: dict[str, Split], samples: int, seed: int, metrics: tuple[str, ...]) -> dict[str, Any]:
    """What --frechet adds: the distance of samples, and that of held-out images, to the train split; and the other metrics of samples."""
    from gsnr.train.evaluation.compare import rounded
    from gsnr.train.frechet import cached_features, sampled_features
    from gsnr.train.metrics import Blocks, Moments
    from gsnr.train.metrics._frechet import Distance

    train, heldout = cached_features(splits["train"]), cached_features(splits["heldout"])
    sampled = sampled_features(loaded, header, splits["heldout"], samples, HEUN_STEPS, seed)
    reference = Moments.of(train)
    to_train = Distance(reference)
    result = {
        "teacher": header.teacher,
        "frechet_samples": samples,
        "frechet_sampler": f"Heun ODE, {HEUN_STEPS} steps, no guidance",
        "frechet": round(to_train(Moments.of(sampled)), 4),
        "frechet_heldout": round(to_train(Moments.of(heldout)), 4),
        "frechet_heldout_images": len(heldout),
    }
    rows = sampled.astype(np.float32), train.astype(np.float32)
    for metric in (plugins.find("metrics", name) for name in metrics):
        of, to = (Blocks.of(rows[0]), reference) if metric.NEEDS == "moments" else rows
        result |= rounded(metric.measure(of, to))
    return result


def in_words(result: dict[str, Any], metrics: tuple[str, ...]) -> str:
    """One line on the samples of --frechet, for people."""
    others = "".join(f", {plugins.constant('metrics', name, 'LABEL')} {result[name]:.3g}" for name in metrics)
    distances = f"Fréchet distance {result['frechet']:.4g} (held-out images {result['frechet_heldout']:.4g})"
    return f"{result['frechet_samples']} samples against the train split, in features of teacher {result['teacher']}: {distances}{others}"


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr evaluate", __doc__)
    parser.add_argument("--ckpt", type=a_path, metavar="DIR", help="run folder or checkpoint folder")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default: ema)")
    parser.add_argument("--data", type=a_cache, metavar="CACHE", help="cache to evaluate on (default: the one the checkpoint was trained on)")
    parser.add_number("--n-images", None, "held-out images (default: all)", low=2, high=10**9)
    parser.add_number("--frechet", 0, "also draw N samples for the Fréchet distance; 0 for none", low=0, high=10**6)
    parser.add_argument("--seed", type=seed, default=0, help="seed of times, noise and samples (default: 0)")
    parser.add_argument("--metrics", metavar="A,B", help=f"of {', '.join(plugins.names('metrics'))} (default: those usual for the features)")
    parser.add_argument("--samples", type=a_path, metavar="NPZ|DIR", help="images to compare: an .npz with arr_0, or a folder of pictures")
    parser.add_argument("--reference", type=a_path, metavar="NPZ|DIR", help="images to compare with; an ADM reference's moments are used")
    parser.add_argument("--captions", type=a_path, metavar="TXT|NPZ", help="one a sample, for features that read them (default: the samples')")
    parser.add_argument("--features", default="inception", metavar="F", help=f"{', '.join(plugins.names('extractors'))} (default: inception)")
    parser.add_argument("--mode", metavar="M", help="how images are resized, of inception: adm, pytorch-fid, clean-fid (default: adm)")
    parser.add_argument("--weights-file", metavar="PATH|URL|ID", help="weights of the features (default: $INCEPTION_WEIGHTS, or the hub's)")
    parser.add_number("--batch", 64, "images at once through the network", low=1, high=100000)
    parser.add_argument("--out", type=a_path, metavar="JSON", help="file that what is printed is also written to, in place of one that is there")
    return parser


OF_CHECKPOINTS = ("weights", "data", "n_images", "frechet", "seed")
OF_SAMPLES = ("reference", "captions", "features", "mode", "weights_file", "batch")


def _check_together(parser: Parser, args: Namespace) -> None:
    """Raises ValueError for neither or both of --ckpt and --samples, and for a flag that goes with the other one."""
    if (args.ckpt is None) == (args.samples is None):
        needed = "one is needed" if args.ckpt is None else "name only one"
        raise ValueError(f"--ckpt, --samples: {needed}: a checkpoint's held-out loss, or metrics of images on a disk")
    there, other, strange = ("--ckpt", "--samples", OF_SAMPLES) if args.ckpt is not None else ("--samples", "--ckpt", OF_CHECKPOINTS)
    for name in strange:
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')}: goes with {other}, not with {there}")
    if args.ckpt is not None and args.metrics and not args.frechet:
        raise ValueError("--metrics: with --ckpt they are of the samples of --frechet N; name a number of samples")
    if args.frechet and args.frechet < LEAST_SAMPLES:
        parser.error(f"--frechet must be 0 or at least {LEAST_SAMPLES}")


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_together(parser, args)
    metrics = None if args.metrics is None else listed("--metrics", args.metrics, plugins.names("metrics"))
    if args.out is not None:
        files.check_output(args.out, "--out", ".json")
    if args.ckpt is not None:
        result = evaluate(args.ckpt, args.weights, args.n_images, args.seed, args.frechet, args.data, metrics or ())
        if args.frechet:
            print(in_words(result, metrics or ()), file=sys.stderr)
    else:
        from gsnr.train.evaluation.compare import Asked, compare

        chosen = {name: getattr(args, name) for name in (*OF_SAMPLES, "samples")}
        result = compare(Asked(**chosen | {"metrics": metrics}))
        for note in result["notes"]:
            print(f"note: {note}", file=sys.stderr)
    text = json.dumps(result, indent=2)
    if args.out is not None:
        files.write_text(args.out, text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    commands.run("evaluate")
