"""Checkpoints: safetensors and JSON, written aside and renamed, so that a kill at any moment leaves the last good one.

    RUN/LAST                             name of the last good checkpoint
    RUN/checkpoints/0000800/state.json   step, resolved config, cache header, versions, time convention, tap, latent scale
                           /model, ema   the backbone, raw and averaged: diffusers folders (SiT.from_pretrained, or MMDiT's, reads them)
                           /alignment.safetensors, alignment_ema.safetensors   router and projector
                           /optimizer.safetensors
                           /manifest.json   every other file with its SHA-256, tensors with shape and dtype

Written and restored by `gsnr.train.runs.training_state`. What is read is compared with the manifest first: nothing else says that a file is
what was saved. Loading never unpickles anything. `gsnr convert` writes the same folder from another project's file: without optimizer, and
with `cache` null, since those files name neither VAE nor data; `groups` then holds the shapes of the features that the alignment's head was
built for.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gsnr import checksums, files, plugins
from gsnr.options import build
from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import TEXT, TrainConfig, check
from gsnr.train.data.cache import OF_TEACHER, Header
from gsnr.train.data.latents import Scaling
from gsnr.train.models.backbone import Backbone
from gsnr.train.models.build import build as backbone_of
from gsnr.train.objective import make_alignment
from gsnr.train.runs import state as states

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # diffusers' name
Weights = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read back. model: the backbone and alignment: its router and projector, both in eval mode, float32, on the CPU.

    sha: SHA-256 over the files of the backbone and of the alignment. run_folder: None for a checkpoint that lies in no run; run_name: what
    tables call the run. header: None where the checkpoint does not know its data. groups: shapes of the features that the alignment was
    built for. latent_scale: raw latent -> final latent; None where it is not one factor.
    """

    folder: Path
    run_folder: Path | None
    run_name: str
    step: int
    weights: Weights
    sha: str
    config: TrainConfig
    header: Header | None
    groups: Mapping[str, tuple[int, ...]]
    latent_scale: float | None
    model: Backbone
    alignment: AlignmentModule


def check_weights(weights: str) -> None:
    """Raises ValueError listing the valid names."""
    if weights not in ("ema", "raw"):
        raise ValueError(f"--weights {weights!r} does not exist; choose from ema, raw")


def weight_files(folder: Path, weights: Weights) -> tuple[Path, Path]:
    """Where the backbone's and the alignment's tensors lie."""
    backbone, alignment = ("ema", "alignment_ema") if weights == "ema" else ("model", "alignment")
    return folder / backbone / WEIGHTS_FILE, folder / f"{alignment}.safetensors"


def write_weights(folder: Path, weights: Weights, model: Backbone, alignment: AlignmentModule) -> None:
    backbone_file, alignment_file = weight_files(folder, weights)
    model.save_pretrained(backbone_file.parent)
    save_file({k: v.contiguous() for k, v in alignment.state_dict().items()}, alignment_file)


def write_state(folder: Path, state: dict[str, Any], hashed: Mapping[str, checksums.Entry] | None = None) -> None:
    """state.json and the manifest, the last files of a checkpoint; afterwards all of the folder outlives a power loss. hashed: entries of the
    manifest that are known. The others are hashed while the disk takes the files in."""
    (folder / states.FILE).write_text(json.dumps(state, indent=2) + "\n")
    with ThreadPoolExecutor(1) as beside:
        manifest = beside.submit(checksums.Manifest.of, folder, hashed)
        for path in folder.rglob("*"):
            files.sync(path)
    (folder / checksums.MANIFEST).write_text(manifest.result().text())
    for path in (folder / checksums.MANIFEST, folder):
        files.sync(path)


def kept(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, the newest last: in the order of their steps, not of their names (which are longer from 10^7 on)."""
    return sorted((p for p in (run / "checkpoints").glob("*") if p.name.isdecimal()), key=lambda p: int(p.name))


def whole(run: Path) -> Iterator[Path]:
    """A run's checkpoints, the newest first. They appear whole; one that was cut short or emptied since is not among them."""
    for folder in reversed(kept(run)):
        if (folder / states.FILE).is_file() and _has_its_files(folder):
            yield folder


def _has_its_files(folder: Path) -> bool:
    """All of them, of their sizes, by the manifest (where there is one)."""
    if not (folder / checksums.MANIFEST).exists():
        return True
    try:
        listed = checksums.Manifest.read(folder).files
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in listed.items())
    except (OSError, ValueError):
        return False


def locate(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or a run's last one. Raises ValueError where it is neither."""
    if not path.exists():
        raise ValueError(f"{path}: no such run or checkpoint folder")
    if path.is_file():
        raise ValueError(f"{path}: a file; name a run folder or a checkpoint folder (`gsnr convert --ckpt {path} --out DIR` makes one)")
    if (path / states.FILE).is_file():
        return path
    last = path / "LAST"
    if not last.is_file():
        raise ValueError(f"{path}: neither a run folder (it has no LAST) nor a checkpoint (it has no state.json)")
    try:
        name = last.read_text().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{last}: damaged ({error})") from error
    folder = path / "checkpoints" / name
    if not name.isdecimal() or not (folder / states.FILE).is_file():
        there = path / "checkpoints"
        raise ValueError(
            f"{last}: points at {name!r}, which is no checkpoint in {there}; name one of those, or delete LAST: --resume takes the newest"
        )
    newest = next(whole(path), folder)
    if int(newest.name) > int(name):  # killed between the two, or a damaged LAST
        note = f"{last} names {name}, but {newest.name} is newer and whole: that one is taken (move {newest} away to go on from {name})"
        print(f"note: {note}", file=sys.stderr)
        return newest
    return folder


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises ValueError naming it where it is missing, truncated or otherwise damaged."""
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or truncated ({str(error).splitlines()[0]})") from error


def load_into(module: nn.Module, path: Path) -> None:
    """Loads weights of our own strictly. Raises ValueError naming the file and the first tensor that does not fit."""
    tensors, own = read_tensors(path), module.state_dict()
    for name, tensor in tensors.items():
        if name in own and tensor.dtype != own[name].dtype:
            raise ValueError(f"{path}: tensor {name!r} holds {tensor.dtype}, the model {own[name].dtype}")
    assign(module, tensors, path)


def assign(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies weights strictly. Raises ValueError naming the file that they are from and the first tensor that does not fit."""
    own = module.state_dict()
    for name in own.keys() | tensors.keys():
        if name not in tensors or name not in own:
            raise ValueError(f"{path}: {'lacks' if name not in tensors else 'has an unexpected'} tensor {name!r}")
        if own[name].shape != tensors[name].shape:
            raise ValueError(f"{path}: tensor {name!r} has shape {tuple(tensors[name].shape)}, the model {tuple(own[name].shape)}")
        if tensors[name].is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{path}: tensor {name!r} holds {tensors[name].dtype}, the model {own[name].dtype}")
        if not tensors[name].isfinite().all():
            raise ValueError(f"{path}: tensor {name!r} holds values that are not finite")
    module.load_state_dict(tensors)


def _hashed(listed: checksums.Manifest, paths: tuple[Path, ...]) -> str:
    """SHA-256 over files one after another, each of which is compared with the manifest on the way."""
    together = hashlib.sha256()
    for number, path in enumerate(paths):
        if not path.is_file():
            raise ValueError(f"{path}: missing")
        digests = [together] if number == 0 else [together, hashlib.sha256()]
        checksums.feed(path, *digests)
        listed.compare(str(path.relative_to(listed.folder)), digests[-1].hexdigest())
    return together.hexdigest()


def load(path: Path | str, weights: Weights = "ema") -> Checkpoint:
    """Reads a run's last checkpoint, or one checkpoint folder. Raises ValueError for anything missing, damaged or mismatched."""
    check_weights(weights)
    folder = locate(Path(path))
    listed = checksums.Manifest.read(folder)
    listed.check_all(leave_out=(checksums.TENSORS,))
    state = states.read(folder)
    backbone_file, alignment_file = weight_files(folder, weights)
    sha = _hashed(listed, (backbone_file, alignment_file))
    try:
        config: TrainConfig = build(TrainConfig, state["config"])
        check(config)
        header = states.header_in(state)
        groups: Mapping[str, tuple[int, ...]] = {k: tuple(v) for k, v in state["groups"].items()} if header is None else header.groups
        shape = (config.model.in_channels, config.model.input_size, config.model.input_size)
        if header is not None and header.latent_shape != shape:
            raise ValueError(f"latents of shape {header.latent_shape} for a model of {' x '.join(map(str, shape))}")
        model = backbone_of(config.model)
        alignment = make_alignment(config.alignment, config.model, groups)
        states.agree(state, folder, config, alignment.taps, (backbone_file.parent.name,))
    except plugins.Missing as error:
        raise ValueError(f"{folder / states.FILE}: {error}") from error
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / states.FILE}: damaged, or of another version ({' '.join(str(error).split())})") from error
    load_into(model, backbone_file)
    load_into(alignment, alignment_file)
    lies_in_run = ((run := folder.resolve().parent.parent) / "LAST").is_file()
    return Checkpoint(
        folder=folder,
        run_folder=run if lies_in_run else None,
        run_name=run.name if lies_in_run else folder.name,
        step=state["step"],
        weights=weights,
        sha=sha,
        config=config,
        header=header,
        groups=groups,
        latent_scale=state["latent_scale"],
        model=model.eval(),
        alignment=alignment.eval(),
    )


def load_model(path: Path | str, weights: Weights = "ema") -> nn.Module:
    """The backbone in eval mode: model(x, t, y) -> velocity; x (B,C,H,W), t (B,), y (B,); t = 1 is noise.

    path: a run folder (its last checkpoint) or one checkpoint folder. Raises ValueError as `load` does.
    """
    return load(path, weights).model


def run_output(checkpoint: Checkpoint, name: str) -> Path:
    """RUN/name for what a command writes by default. Raises ValueError for a checkpoint that lies in no run."""
    if checkpoint.run_folder is None:
        raise ValueError(f"{checkpoint.folder}: lies in no run folder; say where to write with --out")
    return checkpoint.run_folder / name


def decoding(checkpoint: Checkpoint) -> Scaling:
    """Between the VAE's latents and the model's. Raises ValueError for a checkpoint that does not know it."""
    if checkpoint.header is not None:
        return checkpoint.header.scaling
    if checkpoint.latent_scale is None:
        raise ValueError(f"{checkpoint.folder}: trained on latents normalised channel by channel, by statistics it does not hold; cannot be decoded")
    return Scaling(factor=checkpoint.latent_scale)


def require_same_data(checkpoint: Checkpoint, header: Header, groups: tuple[str, ...]) -> None:
    """Raises ValueError where a cache was made by another VAE than the one the checkpoint was trained with, or holds features (of these groups) of
    another shape than its alignment's. A checkpoint that does not know its VAE is warned about where the scale of the latents tells another one.
    """
    was = checkpoint.header
    if was is not None and header.vae_sha != was.vae_sha:
        raise ValueError(
            f"{checkpoint.folder}: trained with VAE {was.vae!r} ({was.vae_sha[:12]}), but the data were encoded by {header.vae!r} "
            f"({header.vae_sha[:12]}); name data of the same VAE with --data"
        )
    for group in groups:
        if group == TEXT:
            if was is not None and was.text_sha and header.text_sha and header.text_sha != was.text_sha:  # of U-ViT's folder it is not known
                raise ValueError(
                    f"{checkpoint.folder}: trained on text of {was.text_encoder!r} ({was.text_sha[:12]}); the cache holds that of "
                    f"{header.text_encoder!r} ({header.text_sha[:12]}); name other data with --data"
                )
            continue
        if was is not None and group in OF_TEACHER and header.teacher_sha != was.teacher_sha:
            raise ValueError(
                f"{checkpoint.folder}: aligned to teacher {was.teacher!r} ({was.teacher_sha[:12]}); the cache holds features of {header.teacher!r} "
                f"({header.teacher_sha[:12]}); name other data with --data"
            )
        if was is not None and group not in OF_TEACHER and header.resampling != was.resampling:
            raise ValueError(
                f"{checkpoint.folder}: aligned to features resampled {was.resampling!r}, those of the cache were resampled {header.resampling!r}"
            )
        if header.groups[group] != checkpoint.groups[group]:
            raise ValueError(
                f"{checkpoint.folder}: its alignment is to {group} features of shape {checkpoint.groups[group]}; those of the cache have "
                f"{header.groups[group]}; name other data with --data"
            )
    if checkpoint.header is None and states.latent_scale_of(header) != checkpoint.latent_scale:
        was_scaled = "channel by channel" if checkpoint.latent_scale is None else f"by {checkpoint.latent_scale}"
        is_scaled = "channel by channel" if header.channel_scale else f"by {header.scale}"
        print(
            f"warning: {checkpoint.folder} was trained on latents scaled {was_scaled}, those of the cache are scaled {is_scaled}",
            file=sys.stderr,
        )
