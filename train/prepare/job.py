"""What one `gsnr prepare` is to do, decided and checked before the first image is encoded; and what its rows depend on."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsnr import files
from gsnr.commandline import choose
from gsnr.train import vae as vaes
from gsnr.train.data import cache, heldout, statistics
from gsnr.train.data.labels import MOST_CLASSES
from gsnr.train.data.latents import Scaling
from gsnr.train.prepare import encode, images, shards, sources
from gsnr.train.priors import layers
from gsnr.train.priors.features import RESAMPLINGS
from gsnr.train.vaes import FrozenVAE

if TYPE_CHECKING:
    from gsnr.train.prepare.captions import Captions
    from gsnr.train.teacher import FrozenTeacher

CHECKED, TOKEN = "checksums of rows", "--class-token"
CAPTIONS, TEXT_ENCODER = "--captions (hash)", "--text-encoder (hash)"
LATER = {
    TOKEN: False,
    CAPTIONS: "",
    TEXT_ENCODER: "",
    "--crop": "adm",
}  # options left out where they are not asked for: caches from before them are the same
PLAIN = ("resolution", "patch", "features", "dtype", "flip", "resampling", "heldout")  # options that stand for themselves
HOW, DEFAULT_GROUPS = ("pooled", cache.ONLINE), ("G3", "G4")
BOUNDS = {
    **{"batch": (1, 2**16), "workers": (0, 256), "shard": (1, 2**20), "num_classes": (1, MOST_CLASSES), "patch": (1, 2**12)},
    "resolution": (1, 4096),  # pixels a side
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """left_out: pictures without a caption. measure: how the latents' scaling is measured, "" where the header has it. options: what the rows depend
    on, by flag. Not among them: batch, workers, processes, device and skip_bad, which may change on the way (another batch or device may change the
    last bits of what is encoded from then on)."""

    source: sources.Source
    vae: FrozenVAE
    teacher: FrozenTeacher | None
    captions: Captions | None
    left_out: list[str]
    header: cache.Header
    shards: list[shards.Shard]
    measure: str
    options: dict[str, Any]


def _features(text: str) -> tuple[str, tuple[str, ...]]:
    """--features: (how they are kept: "" for layer by layer, or one of HOW; groups)."""
    how, colon, groups = text.partition(":")
    if how not in HOW:
        return "", () if text == "none" else tuple(text.split(","))
    return how, tuple(groups.split(",")) if colon else DEFAULT_GROUPS


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for an option that is wrong whatever the data."""
    for name, (least, most) in BOUNDS.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least {least} and at most {most}")
    for name in ("vae", "teacher", "latent_scale", "captions", "text_encoder"):
        if getattr(args, name) == "":
            raise ValueError(f"--{name.replace('_', '-')} '': names nothing; leave it out, or name one")
    how, named = _features(args.features)
    if len(set(named)) < len(named) or not set(named) <= set(layers.GROUPS):
        valid = ", ".join(layers.GROUPS)
        raise ValueError(
            f"--features {args.features!r}: name groups of {valid}, each once, with commas alone between them, or none; "
            f"{' or '.join(HOW)} alone, or with groups after a colon, says how they are kept"
        )
    if how == cache.ONLINE and args.dtype != "float16":
        raise ValueError(f"--dtype {args.dtype}: with --features {args.features} no features are stored; leave it out")
    choose("--crop", args.crop, tuple(images.CROPS))
    if args.resampling not in RESAMPLINGS:
        raise ValueError(f"--resampling {args.resampling!r} does not exist; choose from {', '.join(RESAMPLINGS)}")
    if bool(args.captions) != bool(args.text_encoder):
        asked, lacking = ("--captions", "--text-encoder ID") if args.captions else ("--text-encoder", "--captions FILE")
        raise ValueError(f"{asked}: needs {lacking} beside it")
    for flag in ("labels", "split", "num_classes") if args.captions else ():
        if getattr(args, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')}: is of labelled data; with --captions every label is 0")
    if args.skip_uncaptioned and not args.captions:
        raise ValueError("--skip-uncaptioned: is of --captions, which is missing")


def _latent_scaling(asked: str | None, frozen: FrozenVAE) -> tuple[Scaling | None, str]:
    """(scaling, "") where it is known, (None, how it is measured) otherwise. Raises ValueError for a --latent-scale that cannot be."""
    how = asked or ("vae" if frozen.scaling is not None else statistics.MEASURES[0])
    if how in statistics.MEASURES:
        return None, how
    if how == "vae":
        if frozen.scaling is None:
            raise ValueError(f"--latent-scale vae: VAE {frozen.name!r} has no factor of its own; choose from {', '.join(statistics.MEASURES)}")
        return frozen.scaling, ""
    if not Path(how).is_dir():
        raise ValueError(f"--latent-scale {how!r}: choose from vae, {', '.join(statistics.MEASURES)}, or name a cache")
    other = cache.read_header(Path(how))
    if other.vae_sha != frozen.sha:
        raise ValueError(f"--latent-scale {how}: its latents are of VAE {other.vae!r} ({other.vae_sha[:12]}), not of --vae {frozen.name}")
    return other.scaling, ""


def _opened(args: argparse.Namespace) -> tuple[sources.Source, int, Captions | None, list[str]]:
    """(source, number of classes, captions, pictures that have none and were left out)."""
    if not args.captions:
        return *sources.open_source(args.data, args.labels, args.split, args.num_classes, all_there=not args.skip_bad), None, []
    from gsnr.train import text  # brings transformers, which takes seconds
    from gsnr.train.prepare.captions import Captions, open_captioned

    source, texts, left_out = open_captioned(args.data, args.captions, args.skip_uncaptioned)
    if not args.skip_bad:
        sources.require_present(source)
    return source, 1, Captions(texts=texts, encoder=text.load(args.text_encoder)), left_out


def decide(args: argparse.Namespace) -> Job:
    """Raises ValueError for whatever is wrong with the options or the data."""
    _check(args)
    source, classes, captions, left_out = _opened(args)
    count = len(source.labels)
    if not 0 < args.heldout < count:
        raise ValueError(f"--heldout {args.heldout}: must be at least 1 and leave some of the {count} images for training")
    frozen, teacher = vaes.load(args.vae), None
    if args.teacher:
        from gsnr.train import teacher as teachers  # brings transformers, which takes seconds

        teacher = teachers.load(args.teacher)
    if args.resolution % (frozen.downsampling * args.patch):
        raise ValueError(f"--resolution {args.resolution}: must be a multiple of {frozen.downsampling} (the VAE) times --patch {args.patch}")
    scaling, measure = _latent_scaling(args.latent_scale, frozen)
    members = heldout.choose(count, args.heldout)
    how, groups = _features(args.features)
    header = encode.make_header(
        frozen,
        teacher=teacher,
        data=args.data,
        resolution=args.resolution,
        num_classes=classes,
        grid=args.resolution // frozen.downsampling // args.patch,
        groups=groups,
        pooled=how == "pooled",
        resampling=args.resampling,
        preprocessing=images.preprocessing(args.resolution, args.crop),
        sizes={split: len(numbers) for split, numbers in members.items()},
        dtype=cache.ONLINE if how == cache.ONLINE else args.dtype,
        views=2 if args.flip else 1,
        preprocessing_sha=images.preprocessing_sha(args.crop),
        scaling=scaling,
        class_token=args.class_token,
        captions=captions,
    )
    size = args.shard or shards.images_per_shard(count)
    options = {
        "--data (images, hash of their names and labels)": [count, source.sha],
        "--num-classes": classes,
        "--vae (hash)": header.vae_sha,
        "--teacher (hash)": header.teacher_sha,
        "--shard": size,
        "--latent-scale": measure or [header.scale, list(header.channel_scale), list(header.channel_bias)],
        "cropping (hash; by Pillow)": header.preprocessing_sha,
        CHECKED: "xxh3",
        **{f"--{name}": getattr(args, name) for name in PLAIN},
        **({TOKEN: True} if args.class_token else {}),
        **({"--crop": args.crop} if args.crop != LATER["--crop"] else {}),
        **({CAPTIONS: captions.sha, TEXT_ENCODER: header.text_sha} if captions else {}),
    }
    header = replace(header, options_sha=hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest())
    made: dict[str, Any] = {"header": header, "shards": shards.cut(members, size), "measure": measure, "options": options}
    return Job(source=source, vae=frozen, teacher=teacher, captions=captions, left_out=left_out, **made)


def check_same(record: Path, job: Job, what: str, finished: bool) -> None:
    """Compares the options that a file records. A finished cache may be from before rows had checksums, one that was begun may not: it would have
    them for some. Raises ValueError naming the first option that differs, or a file that is damaged."""
    try:
        before = dict(files.read_json(record)["options"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record}: damaged ({error})") from error
    if CHECKED not in before and not finished:
        raise ValueError(f"{what} by an older version; delete {record.parent} and run the same command again")
    for name, now in (LATER | job.options).items():
        was = before.get(name, LATER.get(name))
        if was != now and (name != CHECKED or name in before):
            raise ValueError(f"{what} with other options: {name} was {was!r}, now {now!r}; use the same, or name a new folder with --out")
