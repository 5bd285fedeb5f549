"""Opens a run's last checkpoint, and the data that a configuration or a checkpoint names: a cache, the demo's (built on first use), or latents
that somebody else prepared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from gsnr.train import vae
from gsnr.train.cache_root import DEMO, DEMOS, TEXT_DEMO
from gsnr.train.config import CLASS_TOKEN, TEXT, TrainConfig, alignment_config, resolve
from gsnr.train.data import controls, latent_folders
from gsnr.train.data.cache import ONLINE, TEACHER, Header, Split, open_cache
from gsnr.train.demo.cache import demo_cache, text_cache
from gsnr.train.objective import check_cache
from gsnr.train.priors.online import OnlineSplit
from gsnr.train.priors.regrid import RegriddedSplit, on_grid
from gsnr.train.runs import checkpoint

Opened = tuple[Header, dict[str, Split]]


def open_prepared(folder: Path, groups: tuple[str, ...], vae_name: str = "") -> Opened:
    """`open_cache`, whose features are computed where they are not stored. vae_name: where the VAE lies now, if not where the cache says."""
    header, splits = open_cache(folder, groups)
    if header.dtype != ONLINE:
        return header, splits
    frozen = vae.load(vae_name or header.vae)
    if frozen.sha != header.vae_sha:
        raise ValueError(f"{folder}: its features are to be computed by VAE {header.vae!r} ({header.vae_sha[:12]}); that is another one now")
    return header, {name: OnlineSplit(split, frozen) for name, split in splits.items()}


def _regridded(config: TrainConfig, opened: Opened) -> Opened:
    """On the model's token grid, where --data.regrid asks for it."""
    (header, splits), grid = opened, config.model.grid
    if config.data.regrid == "off" or all(shape[-1] == grid for shape in header.maps.values()):
        return opened
    return on_grid(header, grid), {name: RegriddedSplit(split, grid) for name, split in splits.items()}


def open_data(config: TrainConfig, control: bool = True) -> tuple[Header, dict[str, Split]]:
    """The cache of a configuration, features on the model's token grid where it asks for that, and under its negative control (unless not
    `control`); the demo's is built on first use.

    Raises ValueError where there is none or it does not fit."""
    header, splits = _opened(config)
    if not control:
        return header, splits
    return header, controls.with_captions(controls.controlled(splits, config.data.control, config.seed), config.data.captions, config.seed)


def _opened(config: TrainConfig) -> Opened:
    alignment = alignment_config(config.alignment)
    if config.data.control != controls.NONE and (alignment.pictures or not alignment.needs):
        reads = "pictures" if alignment.pictures else "none"
        raise ValueError(
            f"--data.control {config.data.control}: is of features that an alignment reads; {config.alignment.get('name', 'none')!r} reads {reads}"
        )
    needs = tuple(dict.fromkeys((*alignment.needs, *config.model.reads)))
    if not config.data.path:
        raise ValueError("--data.path is missing: name a cache folder made by `gsnr prepare`, or `demo`")
    folder = Path(config.data.path)
    if config.data.path == TEXT_DEMO:
        folder = text_cache(config.data.demo_train, config.data.demo_heldout, config.data.resampling)
    elif config.data.path == DEMO:
        folder = demo_cache(config.data.demo_train, config.data.demo_heldout, config.data.resampling, class_token=CLASS_TOKEN in needs)
    elif (opened := latent_folders.open_folder(config.data, needs, config.model.num_classes)) is not None:
        return opened
    header, splits = open_prepared(folder, needs, config.data.vae)
    if config.data.vae and vae.load(config.data.vae).sha != header.vae_sha:
        raise ValueError(f"{folder}: was made with VAE {header.vae!r} ({header.vae_sha[:12]}), not with --data.vae {config.data.vae}")
    if set(needs) - {TEXT} and header.resampling != config.data.resampling:
        raise ValueError(f"{folder}: features were resampled {header.resampling!r}; data.resampling asks for {config.data.resampling!r}")
    if set(needs) - {TEACHER, TEXT} and header.dtype == ONLINE and config.data.workers:
        raise ValueError(f"--data.workers {config.data.workers}: {folder} holds pictures, whose features the trainer itself computes; set it to 0")
    return _regridded(config, (header, splits))


def last_checkpoint(path: Path, weights: str) -> checkpoint.Checkpoint:
    """A run's last checkpoint, or one checkpoint folder; of a run that trains meanwhile and deletes what it has replaced (--keep-last), the one
    that was the last and still there. Raises ValueError as `checkpoint.load` does."""
    while True:
        before = _last(path)
        try:
            return checkpoint.load(path, weights)  # type: ignore[arg-type]
        except (ValueError, OSError):
            if _last(path) == before:
                raise


def _last(run: Path) -> bytes | None:
    """What LAST says; None where there is none."""
    try:
        return (run / "LAST").read_bytes()
    except OSError:
        return None


def data_of(loaded: checkpoint.Checkpoint, data: str | None, features: bool = True, control: bool = True) -> tuple[Header, dict[str, Split]]:
    """The data to measure a checkpoint on: `data` (a cache folder, `demo` or `demo-text`), or else those it was trained on. features: they must be
    there, those that the alignment needs, under the control that it was trained with (unless not `control`); those that the model itself reads
    must be in any case.

    Raises ValueError where it does not say, and where they do not fit it.
    """
    shown = (TEACHER,) if loaded.alignment.config.pictures else ()
    needs = tuple(dict.fromkeys((*((*loaded.alignment.needs, *shown) if features else ()), *loaded.config.model.reads)))
    if data is None and loaded.header is None:
        raise ValueError(f"{loaded.folder}: does not say which data it was trained on; name a cache with --data CACHE")
    if data is None and (path := loaded.config.data.path) not in DEMOS and not Path(path).exists():
        raise ValueError(f"{loaded.folder}: was trained on {path}, which is not there; name the cache with --data")
    if data is None or data == loaded.config.data.path:
        header, splits = open_data(loaded.config, control=features and control)
    elif data in DEMOS:
        header, splits = open_data(resolve({"data": {"path": data}, "model": asdict(loaded.config.model)}))
    else:
        header, splits = _regridded(loaded.config, open_prepared(Path(data), needs))
    checkpoint.require_same_data(loaded, header, needs)
    check_cache(loaded.config.model, header)
    if data is None and loaded.header is not None and loaded.header.rows_sha and header.rows_sha != loaded.header.rows_sha:
        raise ValueError(
            f"{loaded.folder}: {header.data} holds other rows than when it was trained on them (other pictures, or encoded elsewhere); name it with "
            "--data to take it all the same"
        )
    if loaded.header is not None and header.scaling != loaded.header.scaling:
        raise ValueError(
            f"{loaded.folder}: trained on latents scaled otherwise than those of {header.data!r}; prepare these with --latent-scale CACHE, the cache "
            "that it was trained on"
        )
    return header, splits
