"""How fast `gsnr prepare` is, beside a loop over single images with the same VAE, and two processes beside one. One thread each.

    python -m tests.benchmarks.prepare_speed                                    the demo's VAE, 64 pixels
    python -m tests.benchmarks.prepare_speed --vae FOLDER_OR_ID --resolution 256 --images 32 --shard 4

The loop is what people do by hand: open, crop, encode, one .npy of the moments and one of the features an image. Times leave out starting
Python and loading the VAE. Wanted: at least 1 and at least 1.6. Runs turn about, so that other work on the machine meets all of them.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gsnr.train import vae as vaes
from gsnr.train.demo import images as demo
from gsnr.train.prepare import encode
from gsnr.train.prepare.images import centre_crop
from gsnr.train.priors import features

REPO = Path(__file__).parents[2]


def pictures(folder: Path, images: int) -> None:
    """PNGs of the demo's images in class folders, twice their size, so that there is something to crop."""
    for i, (pixels, label) in enumerate(zip(*demo.images("train", images), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((150, 130)).save(folder / str(label) / f"{i:05d}.png")


def loop(folder: Path, out: Path, vae: str, resolution: int) -> float:
    """Images a second, one at a time."""
    frozen = vaes.load(vae)
    chosen = [layer for layer in frozen.layers if layer.group in ("G3", "G4")]
    out.mkdir()
    files = sorted(folder.rglob("*.png"))
    started = time.monotonic()
    for path in files:
        pixels = encode.to_pixels(np.stack([centre_crop(Image.open(path), resolution)]))
        mean, std, groups = features.encode(frozen, pixels, chosen, resolution // frozen.downsampling // 2)
        np.save(out / f"{path.stem}.npy", torch.cat([mean, std], dim=1)[0].numpy())
        np.save(out / f"{path.stem}-features.npy", np.stack([f[0].half().numpy() for f in groups.values()]))
    return len(files) / (time.monotonic() - started)


def prepare(folder: Path, out: Path, options: argparse.Namespace, processes: int) -> float:
    """Images a second, as the command reports them."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = ["--data", folder, "--vae", options.vae, "--resolution", options.resolution, "--out", out, "--heldout", options.images // 8]
    command = [sys.executable, *launch, "-m", "train.prepare", *map(str, words), "--shard", str(options.shard)]
    done = subprocess.run(command, cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    found = re.search(r"([\d.]+) images/s$", done.stdout.strip())
    if found is None:
        raise ValueError(f"train.prepare failed: {done.stderr[-2000:]}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="demo")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--shard", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {"loop": [], "one process": [], "two processes": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder / "pictures", options.images)
        for turn in range(options.turns):
            rates["loop"].append(loop(folder / "pictures", folder / f"loop{turn}", options.vae, options.resolution))
            for processes, key in ((1, "one process"), (2, "two processes")):
                rates[key].append(prepare(folder / "pictures", folder / f"cache{turn}-{processes}", options, processes))
    for key, values in rates.items():
        print(f"{key:14} {' '.join(f'{value:8.2f}' for value in values)} images/s")
    middle = {key: statistics.median(values) for key, values in rates.items()}
    print(f"one process / loop:          {middle['one process'] / middle['loop']:.2f}")
    print(f"two processes / one process: {middle['two processes'] / middle['one process']:.2f}")


if __name__ == "__main__":
    main()
