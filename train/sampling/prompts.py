"""Prompts: the captions that samples of a model of text are drawn for, of a file or of held-out images, and their states when they are asked for.

Shapes: N prompts, L text places, C channels of a state.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.train.data.cache import Split
from gsnr.train.data.heldout import order
from gsnr.train.runs.checkpoint import Checkpoint

if TYPE_CHECKING:
    from gsnr.train.text import FrozenText

LONGEST = 10_000  # characters of a prompt
SAME = 0.01  # of the norm of the empty caption's states: versions, GPUs and float16 differ by less, other encoders by more


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """texts: the captions; states_of: their numbers -> (n,L,C) float32; encoder_sha: of a text encoder that was named."""

    texts: tuple[str, ...]
    states_of: Callable[[NDArray[np.int64]], Tensor]
    encoder_sha: str = ""

    def states(self, numbers_B: NDArray[np.int64]) -> Tensor:
        """(B,L,C) of samples: prompts in turn."""
        return self.states_of(numbers_B % len(self.texts))

    def text(self, number: int) -> str:
        """The prompt of a sample."""
        return self.texts[number % len(self.texts)]

    def first(self, count: int) -> Prompts:
        return replace(self, texts=self.texts[:count])

    def about(self) -> dict[str, str | int]:
        """For the record: in place of classes."""
        told = hashlib.sha256("\n".join(self.texts).encode()).hexdigest()
        named = {"text_encoder_sha": self.encoder_sha} if self.encoder_sha else {}
        return {"classes": "prompts", "prompts": len(self.texts), "prompts_sha256": told, **named}


def read(path: Path) -> tuple[str, ...]:
    """The lines of a file, empty ones left out. Raises ValueError naming it where it is no text, or holds no prompt."""
    try:
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {path}: cannot be read as text ({error})") from error
    if not found:
        raise ValueError(f"--prompts {path}: holds no prompt; one a line is needed")
    if longest := [line for line in found if len(line) > LONGEST]:
        raise ValueError(f"--prompts {path}: a line of {len(longest[0])} characters; at most {LONGEST}")
    return found


def of_file(path: Path, loaded: Checkpoint, encoder: str | None = None) -> Prompts:
    """encoder: the text encoder's name; None for the one that the checkpoint's data name. Raises ValueError where there is none, or it is not the one
    that the checkpoint was trained with."""
    from gsnr.train import text  # brings transformers, which takes seconds

    texts = read(path)
    named = encoder or ("" if loaded.header is None else loaded.header.text_encoder)
    if not named:
        raise ValueError(f"--prompts {path}: {loaded.folder} does not say which text encoder it reads; name it with --text-encoder")
    frozen = text.load(named)
    if not _is_its_own(frozen, loaded):
        raise ValueError(f"--prompts {path}: text encoder {named!r} is not the one that the data of {loaded.folder} were made with")
    if cut := frozen.too_long(texts):
        said = f"{len(cut)} of {len(texts)} prompts are longer than {frozen.shape[0]} tokens, and cut off there"
        print(f"note: --prompts {path}: {said}", file=sys.stderr)
    frozen.model.to("cuda" if torch.cuda.is_available() else "cpu")
    sha = frozen.sha if encoder is not None else ""
    return Prompts(texts=texts, states_of=lambda numbers_B: frozen.encode([texts[k] for k in numbers_B]), encoder_sha=sha)


def _is_its_own(frozen: FrozenText, loaded: Checkpoint) -> bool:
    """By its hash; where others prepared the states and there is none, by what it says of the empty caption, which lies in the model."""
    null_LC = loaded.model.get_buffer("null_text").cpu().float()
    if frozen.shape != null_LC.shape:
        return False
    if loaded.header is not None and loaded.header.text_sha:
        return frozen.sha == loaded.header.text_sha
    return bool((frozen.encode([""])[0].cpu() - null_LC).norm() <= SAME * null_LC.norm())


def of_split(split: Split, shuffled: bool = False) -> Prompts:
    """The first caption of each image, in order; shuffled: in the fixed order of held-out images, so that few of them are of all kinds."""
    index_N = order(split.size) if shuffled else np.arange(split.size, dtype=np.int64)
    texts = tuple(captions[0] for captions in split.captions(index_N))

    def states(numbers_B: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(split.texts(index_N[numbers_B], np.zeros(len(numbers_B))))

    return Prompts(texts=texts, states_of=states)
