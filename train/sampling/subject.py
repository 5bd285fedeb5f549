"""What is sampled: a checkpoint, the VAE that decodes its latents, and the scaling between the two."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from gsnr.train import opening, vae
from gsnr.train.data.latents import Scaling
from gsnr.train.guidance import Guidance
from gsnr.train.runs import checkpoint
from gsnr.train.sampling import prompts
from gsnr.train.sampling.prompts import Prompts
from gsnr.train.vaes import FrozenVAE


@dataclass(frozen=True, kw_only=True)
class Subject:
    """prompts: of a model that reads text; see `with_prompts`."""

    loaded: checkpoint.Checkpoint
    frozen: FrozenVAE
    scaling: Scaling
    prompts: Prompts | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a latent."""
        model = self.loaded.config.model
        return model.in_channels, model.input_size, model.input_size

    @property
    def extra(self) -> int | None:
        """Channels of the class token; None for a model without one."""
        return self.loaded.config.model.extra_token

    @property
    def side(self) -> int:
        """Of an image, in pixels."""
        return self.shape[1] * self.frozen.downsampling

    @property
    def reads_text(self) -> bool:
        return self.loaded.config.model.text

    @property
    def classes(self) -> int:
        return self.loaded.config.model.num_classes

    def check(self, guidance: Guidance, classes: tuple[int, ...] = ()) -> None:
        """Raises ValueError for what this checkpoint cannot be asked for."""
        if guidance.token is not None and self.extra is None:
            raise ValueError(f"--cls-cfg, --cls-cfg-interval: {self.loaded.folder} has no class token to guide; leave them out")
        if guidance.used and self.loaded.config.label_dropout == 0:
            raise ValueError(f"--cfg {guidance.weight}: {self.loaded.folder} was trained without label dropout, and has no unconditional velocity")
        if guidance.channels is not None and guidance.channels > self.shape[0]:
            raise ValueError(f"--guide-channels {guidance.channels}: the latents of {self.loaded.folder} have {self.shape[0]}")
        if classes and max(classes) >= self.classes:
            raise ValueError(f"--classes {max(classes)}: {self.loaded.folder} has classes 0 to {self.classes - 1}")


def open_subject(path: Path, weights: str, name: str | None, other: bool = False) -> Subject:
    """See `subject_of`. Raises ValueError for anything missing, damaged or mismatched."""
    return subject_of(opening.last_checkpoint(path, weights), name, other)


def with_prompts(subject: Subject, path: Path | None, data: str | None, classes: str | None, encoder: str | None = None) -> Subject:
    """The subject with the prompts of a file, or of the held-out images of `data` (default: of its own), where it reads text. path, data, classes,
    encoder: the flags --prompts, --data, --classes and --text-encoder. Raises ValueError naming a flag that does not go with this checkpoint."""
    folder = subject.loaded.folder
    if not subject.reads_text:
        given = {"--prompts": path, "--data": data, "--text-encoder": encoder}
        if flag := next((name for name, value in given.items() if value is not None), None):
            raise ValueError(f"{flag}: {folder} reads no text, but classes; name them with --classes")
        return subject
    if classes is not None:
        raise ValueError(f"--classes {classes}: {folder} reads text; name captions with --prompts FILE, or data that hold some with --data CACHE")
    if path is not None and data is not None:
        raise ValueError("--prompts, --data: two sources of captions; name one of them")
    if path is not None:
        return replace(subject, prompts=prompts.of_file(path, subject.loaded, encoder))
    if encoder is not None:
        raise ValueError(f"--text-encoder {encoder}: encodes captions of --prompts FILE; the states of others lie in the data")
    _, splits = opening.data_of(subject.loaded, data, features=False)
    return replace(subject, prompts=prompts.of_split(splits["heldout"]))


def subject_of(loaded: checkpoint.Checkpoint, name: str | None, other: bool = False) -> Subject:
    """name: of the VAE; None for the one that the checkpoint was trained with. other: it may be another one, which is said on stderr.

    Raises ValueError for a VAE that is missing, damaged, without decoder or mismatched."""
    header = loaded.header
    wanted = name if header is None else name or header.vae
    if wanted is None:
        raise ValueError(f"{loaded.folder}: does not say which VAE decodes its latents; name one with --vae")
    frozen = vae.load(wanted)
    frozen.require_decoder("gsnr sample")
    if header is not None and frozen.sha != header.vae_sha:
        if not (other and name):
            raise ValueError(f"--vae {frozen.name}: not the VAE this checkpoint was trained with ({header.vae})")
        print(f"note: --vae {frozen.name}: decodes what {header.vae} encoded for the training", file=sys.stderr)
    if frozen.channels != loaded.config.model.in_channels:
        raise ValueError(f"--vae {frozen.name}: decodes latents of {frozen.channels} channels; the model has {loaded.config.model.in_channels}")
    return Subject(loaded=loaded, frozen=frozen, scaling=checkpoint.decoding(loaded))
