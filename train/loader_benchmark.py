"""`gsnr loader`: does training wait for its data?

    gsnr loader --preset ahpa-demo                                      the demo, as it is trained
    gsnr loader --preset ahpa-b2 --synthetic 512 --batch 16             random data of B/2's shapes, on a CPU
    torchrun --nproc-per-node 8 -m gsnr loader --preset ahpa-xl2 --data CACHE       your data, your machine

Trains as `gsnr train` does, for a few steps in a temporary folder (with room for a checkpoint), and says which share of the time the
loop waited for a batch; then one process reads as many batches without training, which is the most that the data could feed it. The first
fifth of the steps (processes start, pages are read for the first time) is left out. Options of the configuration (--batch, --optim.lr, ...)
are those of `gsnr train`; how long it trains, logs and saves is its own.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsnr import commands, files
from gsnr.commandline import Parser, a_path, choose

if TYPE_CHECKING:
    from gsnr.train.config import TrainConfig
    from gsnr.train.data import cache, statistics

WINDOWS = 5  # lines of metrics.jsonl, of which the first is left out
HELDOUT = 8
CAPTIONS = 5  # an image, as of COCO's


def synthetic_cache(out: Path, config: TrainConfig, images: int, dtype: str, heldout: int = HELDOUT) -> None:
    """A cache of random numbers with the features that the alignment needs and the text that the model reads, of the configuration's shapes,
    written as `gsnr prepare` does."""
    import torch

    from gsnr.train.config import TEXT, alignment_config
    from gsnr.train.costing.counts import groups_of
    from gsnr.train.data import cache, quantise, statistics
    from gsnr.train.prepare import shards

    needs = (*alignment_config(config.alignment).needs, *config.model.reads)
    m = config.model
    groups: dict[str, Any] = {name: shape for name, shape in groups_of(config).items() if name in needs}
    header = cache.Header(
        schema_version=cache.SCHEMA_VERSION,
        data="synthetic",
        vae="none",
        vae_sha="",
        scale=1.0,
        resolution=8 * m.input_size,
        num_classes=1 if m.text else m.num_classes,
        latent_shape=(m.in_channels, m.input_size, m.input_size),
        resampling=config.data.resampling,
        preprocessing="none",
        dtype=dtype,
        groups=groups,
        layers=dict.fromkeys(groups, ()),
        sizes={"train": images, "heldout": heldout},
        text_shape=(m.text_tokens, m.text_width) if m.text else (),
        captions=CAPTIONS if m.text else 0,
    )

    def rows(numbers_N: np.ndarray) -> Iterator[tuple[cache.Rows, statistics.Sums]]:
        for number in numbers_N:
            generator = torch.Generator().manual_seed(int(number))
            mean = torch.randn(1, *header.latent_shape, generator=generator).numpy()
            one: cache.Rows = {"image_id": np.array([number]), "label": np.array([number % header.num_classes]), "view": np.zeros(1, np.int8)}
            one |= {"mean": mean, "std": np.ones_like(mean)}
            if m.text:
                strings = np.empty(1, dtype=object)
                strings[0] = ("",) * CAPTIONS
                states = torch.randn(1, CAPTIONS, *header.text_shape, generator=generator).half().numpy()
                one |= {cache.COUNT: np.array([CAPTIONS]), cache.CAPTION: strings, TEXT: states}
            sums: statistics.Sums = {}
            for group, shape in groups.items():
                f = torch.randn(1, *shape, generator=generator)
                q, scale = quantise.quantise(f)
                one |= {group: q.numpy(), f"{group}{quantise.SUFFIX}": scale.numpy()} if dtype == "int8" else {group: f.half().numpy()}
                sums[group] = statistics.sums_of(f)
            yield one, sums

    place = shards.Workplace(out.with_name(f".{out.name}.preparing"))
    place.make_ready({})
    members = {"train": np.arange(images, dtype=np.int64), "heldout": images + np.arange(heldout, dtype=np.int64)}
    parts = shards.cut(members, shards.images_per_shard(images))
    for shard in parts:
        place.write(shard, header, rows(shard.images), shards.Seen())
    shards.finish(place, parts, header, {"options": {}}, null_text=np.zeros(header.text_shape, np.float32) if m.text else None)
    shards.publish(place, out)


def waited(metrics: Path) -> tuple[float, float]:
    """(share of the time that the loop waited for data, steps a second), over all lines of a metrics.jsonl but the first."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = [after["wall_s"] - before["wall_s"] for before, after in pairwise(lines)]
    shares = [line["wait_share"] for line in lines[1:]]
    if None in shares or not sum(seconds):
        raise ValueError(f"{metrics}: the clock did not move between its lines; measure more steps (--steps)")
    return float(np.average(shares, weights=seconds)), (lines[-1]["step"] - lines[0]["step"]) / sum(seconds)


def fed(config: TrainConfig) -> tuple[float, float]:
    """(images, bytes) a second that one process gets of the loader alone, its first fifth left out."""
    from gsnr.estimates import ratio
    from gsnr.train import opening
    from gsnr.train.config import alignment_config
    from gsnr.train.data.batches import StepBatches, loader

    _, splits = opening.open_data(config)
    needs = alignment_config(config.alignment).needs
    batches = StepBatches(
        split=splits["train"],
        groups=needs,
        batch=config.batch,
        seed=config.seed,
        label_dropout=config.label_dropout,
        always=config.model.reads,
    )
    first, started, size = config.steps // WINDOWS, 0.0, 0
    for step, batch in enumerate(loader(batches, 0, config.steps, config.data.workers), start=1):
        if step == first:
            started = time.perf_counter()
        elif step > first:
            size += sum(x.nbytes for x in batch.values())
    seconds = time.perf_counter() - started
    return float(ratio((config.steps - first) * config.batch, seconds)), float(ratio(size, seconds))


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr loader", __doc__)
    parser.add_argument("--preset", default="demo", metavar="NAME", help="as of `gsnr train` (default: demo)")
    parser.add_number("--steps", 50, "steps to train", low=WINDOWS, high=10**6)
    parser.add_number("--synthetic", 0, "train on N random images of the preset's shapes; 0 for those of --data", low=0, high=10**6)
    parser.add_argument("--dtype", default="float16", metavar="float16|int8", help="of the synthetic features (default: float16)")
    parser.add_argument("--folder", type=a_path, metavar="DIR", help="where run and synthetic data are put for the while (default: the system's)")
    return parser


def main(argv: list[str]) -> int:
    args, rest = _parser().parse_known_args(argv)

    from gsnr.train import presets
    from gsnr.train.command import overrides
    from gsnr.train.config import nest, resolve
    from gsnr.train.data import quantise
    from gsnr.train.trainer import train

    choose("--dtype", args.dtype, quantise.DTYPES)
    if args.folder is not None and not args.folder.is_dir():
        raise ValueError(f"--folder {args.folder}: no such folder")
    steps = args.steps - args.steps % WINDOWS
    quiet = {"steps": steps, "log_every": steps // WINDOWS, "save_every": 10**9, "sample_every": 0, "trackers": "none", "gsnr_every": 0}
    with files.scratch(Path(args.folder or tempfile.gettempdir()) / "gsnr-loader") as folder:
        config = resolve(presets.find(args.preset), nest(overrides(rest)), quiet)
        if args.synthetic:
            made = folder / "cache"
            synthetic_cache(made, config, args.synthetic, args.dtype)
            config = replace(config, data=replace(config.data, path=str(made)))
        out = folder / "run"
        with redirect_stdout(io.StringIO()):  # where it saved is of no interest
            train(config, out)
        if int(os.environ.get("RANK", 0)):
            return 0
        if not (out / "LAST").is_file() or int((out / "LAST").read_text()) < steps:
            raise ValueError(f"stopped before step {steps}; nothing was measured")
        share, rate = waited(out / "metrics.jsonl")
        images, size = fed(config)
    print(f"training: {rate * config.batch:.1f} images/s ({rate:.2f} steps/s of {config.batch}); {100 * share:.1f} % of the time waiting for data")
    print(f"loader alone, {config.data.workers} workers: {images:.1f} images/s, {size / 2**20:.0f} MiB/s")
    return 0


if __name__ == "__main__":
    commands.run("loader")
