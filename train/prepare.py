"""`python -m train.prepare`: a folder of images, one sub-folder a class, becomes the cache that training and probes read.

    python -m train.prepare --data imagenet/train --vae stabilityai/sd-vae-ft-mse --out cache/imagenet-256

Images are halved until their short side is below twice the resolution, resized to it and cropped in the centre, as in ADM. The cache
holds the latents as moments, labels, and the pooled features of chosen groups of VAE layers, and is bound to the VAE by its hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from gsnr.commandline import Parser, run
from gsnr.files import check_writable

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def centre_crop(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """(side, side, 3) uint8: ADM's preprocessing (Dhariwal and Nichol 2021): box-halve, bicubic to the short side, crop the centre."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def list_images(folder: Path) -> tuple[list[Path], NDArray[np.int64], int]:
    """(files, labels (N,), number of classes); classes are the sub-folders in sorted order. Raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"--data {folder}: no such folder")
    classes = sorted(d for d in folder.iterdir() if d.is_dir())
    found = [(f, label) for label, d in enumerate(classes) for f in sorted(d.rglob("*")) if f.suffix.lower() in SUFFIXES]
    if not found:
        raise ValueError(f"--data {folder}: no images in sub-folders (one sub-folder a class: {', '.join(sorted(SUFFIXES))})")
    return [f for f, _ in found], np.array([label for _, label in found], dtype=np.int64), len(classes)


def read_image(path: Path, side: int) -> NDArray[np.uint8]:
    """One image, cropped. Raises ValueError naming a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return centre_crop(image, side)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def main(argv: list[str]) -> int:
    assert __doc__ is not None
    parser = Parser("python -m train.prepare", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="images, one sub-folder a class")
    parser.add_argument("--vae", required=True, metavar="ID", help="hub id or folder of a diffusers AutoencoderKL, or `demo`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="cache folder to create")
    parser.add_argument("--resolution", type=int, default=256, help="side in pixels (default: 256)")
    parser.add_argument("--patch", type=int, default=2, help="the model's patch size, which sets the token grid of the features (default: 2)")
    parser.add_argument("--teacher", metavar="ID", help="also keep patch tokens of a DINOv2 (hub id, folder) or `demo`, for REPA (default: none)")
    parser.add_argument("--features", default="G3,G4", metavar="G,G", help="groups of VAE layers to keep, or none (default: G3,G4)")
    parser.add_argument("--resampling", default="adaptive", help="how features reach the token grid: adaptive, bilinear (default: adaptive)")
    parser.add_argument("--heldout", type=int, default=512, metavar="N", help="images set aside for probes, drawn at random (default: 512)")
    parser.add_argument("--batch", type=int, default=16, help="images per VAE pass (default: 16)")
    args = parser.parse_args(argv)

    from train import teacher as teachers
    from train import vae as vaes
    from train.data import cache, encode
    from train.priors.features import RESAMPLINGS

    if args.resampling not in RESAMPLINGS:
        raise ValueError(f"--resampling {args.resampling!r} does not exist; choose from {', '.join(RESAMPLINGS)}")
    if args.batch < 1:
        raise ValueError(f"--batch {args.batch}: must be at least 1")
    if args.out.exists():
        raise ValueError(f"--out {args.out}: exists; name a new folder")
    check_writable(args.out.parent, "--out")
    files, labels, classes = list_images(args.data)
    if not 0 < args.heldout < len(files):
        raise ValueError(f"--heldout {args.heldout}: must be at least 1 and leave some of the {len(files)} images for training")
    frozen = vaes.load(args.vae)
    teacher = teachers.load(args.teacher) if args.teacher else None
    if args.patch < 1 or args.resolution < 1 or args.resolution % (frozen.downsampling * args.patch):
        raise ValueError(f"--resolution {args.resolution}: must be a multiple of {frozen.downsampling} (the VAE) times --patch {args.patch}")
    order = np.random.default_rng(0).permutation(len(files))
    members = {"heldout": np.sort(order[: args.heldout]), "train": np.sort(order[args.heldout :])}
    header = encode.make_header(
        frozen,
        teacher=teacher,
        data=str(args.data),
        resolution=args.resolution,
        num_classes=classes,
        grid=args.resolution // frozen.downsampling // args.patch,
        groups=() if args.features == "none" else tuple(args.features.split(",")),
        resampling=args.resampling,
        preprocessing=f"ADM centre crop to {args.resolution}",
        sizes={split: len(members[split]) for split in cache.SPLITS},
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen.model.to(device)
    if teacher is not None:
        teacher.model.to(device)
    bar = tqdm(total=len(files), desc="prepare", unit="image", mininterval=1.0)

    def batches(split: str) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        for start in range(0, len(members[split]), args.batch):
            which = members[split][start : start + args.batch]
            yield np.stack([read_image(files[i], args.resolution) for i in which]), labels[which]
            bar.update(len(which))

    cache.write(args.out, header, {split: encode.encode_rows(frozen, batches(split), header, device, teacher) for split in cache.SPLITS})
    bar.close()
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"wrote {args.out}: {len(files)} images of {classes} classes, {size / len(files) / 2**20:.3f} MiB an image")
    return 0


if __name__ == "__main__":
    run(main)
