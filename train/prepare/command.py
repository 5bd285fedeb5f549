"""`gsnr prepare`: pictures become the cache that training and probes read.

    gsnr prepare --data imagenet/train --vae stabilityai/sd-vae-ft-mse --out cache/imagenet-256
    torchrun --nproc-per-node 8 -m gsnr prepare --data ...     one process a GPU; several nodes need a folder that all of them see
    gsnr prepare --data train2014 --captions captions_train2014.json --text-encoder openai/clip-vit-large-patch14 ...     text in place of labels

Images are halved until their short side is below twice the resolution, resized to it and cropped in the centre, as in ADM. The cache
holds the latents as moments, labels, and the features of chosen groups of VAE layers, and is bound to the VAE by its hash. What an image
takes is printed before the first is encoded; at 512 pixels see --features pooled and online (docs/resolution.md). Killed at
any moment, the same command goes on where it stopped; the rows depend neither on that nor on the number of processes and workers.
docs/data.md says which layouts of --data are read and what is stored.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from gsnr.commandline import Parser, a_path
from gsnr.files import check_writable

if TYPE_CHECKING:
    from gsnr.train.data import cache, statistics
    from gsnr.train.prepare import shards
    from gsnr.train.prepare.images import Crops
    from gsnr.train.prepare.job import Job
    from gsnr.train.prepare.processes import Processes

CPU_PIXELS = 256**2  # in a pass on a CPU: more do not fit its caches (SD-VAE at 256 pixels: 10 % slower), fewer cost calls (the demo's at 64)


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr prepare", __doc__)
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="class folders, a folder with a labels file, or a Hugging Face data set; with --captions a folder of pictures",
    )
    parser.add_argument("--vae", required=True, metavar="ID", help="hub id or folder of a VAE of diffusers, `demo`, or KIND:SOURCE for a plug-in")
    parser.add_argument("--out", type=a_path, required=True, metavar="DIR", help="cache folder to create")
    parser.add_argument("--resolution", type=int, default=256, help="side in pixels (default: 256)")
    parser.add_argument("--crop", default="adm", help="adm, or lanczos: the centre square, as U-ViT crops COCO (default: adm)")
    parser.add_argument("--patch", type=int, default=2, help="the model's patch size, which sets the token grid of the features (default: 2)")
    parser.add_argument(
        "--features",
        default="G3,G4",
        metavar="G,G",
        help="groups of VAE layers to keep, G1 to G4, or none; pooled[:G,G]: the mean of each group's layers alone; online[:G,G]: cropped pictures "
        "in their place, which the VAE encodes when they are read (default: G3,G4)",
    )
    parser.add_argument("--dtype", default="float16", help="of the features: float16 or int8 (default: float16)")
    parser.add_argument("--teacher", metavar="ID", help="also keep patch tokens of a DINOv2 (hub id, folder) or `demo`, for REPA (default: none)")
    parser.add_argument(
        "--class-token",
        action="store_true",
        help="also keep the teacher's class token, for REG: DINOv2's, raw; of `demo`, which has none, its pooled features stand in",
    )
    parser.add_argument(
        "--latent-scale",
        metavar="HOW",
        help="how latents are scaled for the model: vae (its own factor), scalar or channel (measured on the train split, to unit variance), or as "
        "in another cache of this VAE, by its folder (default: vae, scalar where it has no factor)",
    )
    parser.add_argument("--flip", action="store_true", help="also keep every image mirrored, with latents and features of its own")
    parser.add_argument("--resampling", default="adaptive", help="how features reach the token grid: adaptive, bilinear (default: adaptive)")
    parser.add_argument("--heldout", type=int, default=512, metavar="N", help="images set aside for probes, drawn at random (default: 512)")
    parser.add_argument("--num-classes", type=int, metavar="N", help="labels must be below it (default: what the data say)")
    parser.add_argument("--labels", type=a_path, metavar="FILE", help="labels file (default: DATA/dataset.json or DATA/labels.csv if there is one)")
    parser.add_argument("--split", metavar="NAME", help="of a Hugging Face data set (default: train)")
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="captions in place of labels, several an image: a JSON of COCO's kind, or `txt` for a text file beside each picture, a caption a line",
    )
    parser.add_argument(
        "--text-encoder",
        metavar="ID",
        help="CLIP text model (hub id, folder, or `demo`) whose states of the captions are kept: openai/clip-vit-large-patch14, say",
    )
    parser.add_argument("--skip-uncaptioned", action="store_true", help="leave out images without a caption, counting them, instead of stopping")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, naming them, instead of stopping")
    parser.add_argument("--batch", type=int, metavar="N", help="images per VAE pass (default: 16; without a GPU, as many as make 256x256 pixels)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read and crop ahead, each (default: 4 with a GPU, else 0: in place)")
    parser.add_argument("--shard", type=int, metavar="N", help="images a file (default: 128, or more where a split would need over 512 files)")
    return parser


def _is_done(out: Path, job: Job, leads: bool) -> bool:
    """Whether `out` is this very cache, of the same pictures (which the leading process looks at). Raises ValueError where it is anything else."""
    from gsnr.train.data import cache
    from gsnr.train.prepare import contents, shards
    from gsnr.train.prepare.job import check_same

    if not out.exists():
        return False
    if not (out / shards.RECORD).is_file():
        raise ValueError(f"--out {out}: exists; name a new folder")
    check_same(out / shards.RECORD, job, f"--out {out}: was prepared", finished=True)
    cache.open_cache(out, job.header.columns)
    if leads:
        contents.compare(job.source, contents.read(out), f"--out {out}: was prepared")
    return True


class _Progress:
    """A bar over the images of all processes, shown by the first."""

    def __init__(self, job: Job, todo: list[shards.Shard], team: Processes) -> None:
        self.team = team
        total, left = (sum(len(shard.images) for shard in some) for some in (job.shards, todo))
        show = {"desc": "prepare", "unit": "image", "mininterval": 1.0, "smoothing": 0, "disable": team.rank > 0}
        self.before, self.bar = total - left, tqdm(total=total, initial=total - left, **show)

    def add(self, images: int = 0) -> None:
        """Counts images, and shows what all processes have counted."""
        self.bar.update(self.before + self.team.count(images) - self.bar.n)

    def close(self) -> None:
        self.bar.close()


def _encode_share(
    job: Job, place: shards.Workplace, mine: list[shards.Shard], team: Processes, args: argparse.Namespace, add: Callable[[int], None]
) -> None:
    """Writes this process's shards. Raises ValueError naming an image that cannot be read, unless args.skip_bad."""
    from gsnr.train.prepare import encode, images, shards

    encoder = encode.Encoder(job.vae, job.header, team.device, job.teacher, bool(job.measure), job.captions)
    workers = args.workers if args.workers is not None else 0 if team.device == "cpu" else min(4, os.cpu_count() or 1)
    batch = args.batch or (max(1, CPU_PIXELS // args.resolution**2) if team.device == "cpu" else 16)
    batches = [[shard.images[i : i + batch] for i in range(0, len(shard.images), batch)] for shard in mine]
    stream = iter(images.loader(job.source, args.resolution, [numbers for some in batches for numbers in some], workers, args.crop))

    def encoded(part: Iterable[Crops], seen: shards.Seen) -> Iterator[tuple[cache.Rows, statistics.Sums]]:
        for crops in part:
            if crops.bad and not args.skip_bad:
                raise ValueError(f"{crops.bad[0]}; --skip-bad leaves such images out")
            for line in crops.bad:
                tqdm.write(f"left out: {line}", file=sys.stderr)
            seen.skipped.extend(crops.bad)
            seen.contents.extend(crops.contents)
            if len(crops.numbers):
                yield encoder(crops.images, crops.numbers, job.source.labels[crops.numbers])
            add(len(crops.numbers) + len(crops.bad))

    for shard, some in zip(mine, batches, strict=True):
        seen = shards.Seen()
        place.write(shard, job.header, encoded(islice(stream, len(some)), seen), seen)


def _begin(args: argparse.Namespace, place: shards.Workplace, held: ExitStack, leads: bool) -> tuple[Job, list[shards.Shard] | None]:
    """The job, and the shards that are still to be made (None: the cache is there). The leading process makes the folder aside ready."""
    from gsnr.train.prepare import contents
    from gsnr.train.prepare.job import check_same, decide

    job = decide(args)
    if _is_done(args.out, job, leads):
        return job, None
    if leads:
        check_writable(args.out.parent, "--out")
        held.enter_context(place.locked())
        if place.begun():
            check_same(place.record, job, f"--out {args.out}: was begun, in {place.aside},", finished=False)
            seen = [place.read_note(shard).seen for shard in job.shards if place.finished(shard)]
            contents.compare(job.source, [content for one in seen for content in one.contents], f"--out {args.out}: was begun, in {place.aside},")
        place.make_ready(job.options)
        sizes = job.header.bytes_an_image()
        _say_captions(job)
        print(f"an image takes {sum(sizes.values())} bytes: {', '.join(f'{name} {size}' for name, size in sizes.items())}", flush=True)
    return job, [shard for shard in job.shards if not place.finished(shard)]


def _say_captions(job: Job) -> None:
    """What is not kept of them."""
    if job.left_out:
        print(f"{len(job.left_out)} images without a caption are left out, the first {job.left_out[0]}", flush=True)
    if job.captions is not None and (long := job.captions.too_long):
        positions, total = job.captions.encoder.shape[0], sum(map(len, job.captions.texts))
        print(f"{len(long)} of {total} captions are truncated to {positions} positions, the first {long[0]!r}", flush=True)


def _prepare(args: argparse.Namespace, held: ExitStack) -> None:
    from gsnr.train.prepare import processes, shards

    team = held.enter_context(processes.joined())
    place = shards.Workplace(args.out.with_name(f".{args.out.name}.preparing"))
    job, todo = team.agree(lambda: _begin(args, place, held, team.rank == 0))
    if todo is None:
        if team.rank == 0:
            shutil.rmtree(place.aside, ignore_errors=True)
            print(f"{args.out}: already prepared with these options; nothing to do")
        return
    mine = todo[team.rank :: team.world]
    progress = held.enter_context(closing(_Progress(job, todo, team)))
    started = time.monotonic()
    try:
        _encode_share(job, place, mine, team, args, progress.add)
        team.wait(progress.add)
        if team.rank:
            return
        seconds = time.monotonic() - started
        null_text = None if job.captions is None else job.captions.null_text()
        uncaptioned = {"uncaptioned": job.left_out} if job.left_out else {}
        header, skipped = shards.finish(place, job.shards, job.header, {"options": job.options, **uncaptioned}, job.measure, null_text)
        shards.publish(place, args.out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        done = sum(place.finished(shard) for shard in job.shards)
        raise ValueError(
            f"--out {args.out}: the disk is full; {done} of {len(job.shards)} shards are finished and stay in {place.aside}: "
            "make room and run the same command again"
        ) from error
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"finished shards stay in {place.aside}; the same command goes on") from stop
    progress.close()
    from gsnr.estimates import ratio

    count, encoded = sum(header.sizes.values()), sum(len(shard.images) for shard in todo)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    what = f"with 1 to {header.captions} captions" if header.text_shape else f"of {header.num_classes} classes"
    print(
        f"wrote {args.out}: {count} images {what}, {size / count / 2**20:.3f} MiB an image, {len(skipped)} left out; "
        f"{encoded} read and encoded in {seconds:.1f} s, {ratio(encoded, seconds):.2f} images/s"
    )


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    args.out = args.out.absolute() if not args.out.name else args.out

    import torch

    try:
        with ExitStack() as held:
            _prepare(args, held)
    except torch.OutOfMemoryError as error:
        raise ValueError("--batch: too many images for the GPU's memory; what is finished stays: run it again with a smaller one") from error
    return 0
