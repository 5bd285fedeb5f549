"""Prompts: the captions that samples of a model of text are drawn for, of a file or of held-out images, and their states when they are asked for.

Shapes: N prompts, L text places, C channels of a state.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsnr.train.config import ModelConfig
from gsnr.train.data.cache import Header, Split
from gsnr.train.data.heldout import order

LONGEST = 10_000  # characters of a prompt


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """texts: the captions; states_of: their numbers -> (n,L,C) float32."""

    texts: tuple[str, ...]
    states_of: Callable[[NDArray[np.int64]], Tensor]

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
        return {"classes": "prompts", "prompts": len(self.texts), "prompts_sha256": told}


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


def of_file(path: Path, model: ModelConfig, header: Header | None) -> Prompts:
    """By the text encoder that the checkpoint's data name. Raises ValueError where there is none, or it is another one now."""
    from gsnr.train import text  # brings transformers, which takes seconds

    texts = read(path)
    if header is None or not header.text_encoder:
        raise ValueError(f"--prompts {path}: the checkpoint does not say which text encoder it reads; name data of it with --data instead")
    frozen = text.load(header.text_encoder)
    if frozen.sha != header.text_sha or frozen.shape != (model.text_tokens, model.text_width):
        raise ValueError(f"--prompts {path}: text encoder {header.text_encoder!r} is not the one that the checkpoint's data were made with")
    if cut := frozen.too_long(texts):
        said = f"{len(cut)} of {len(texts)} prompts are longer than {model.text_tokens} tokens, and cut off there"
        print(f"note: --prompts {path}: {said}", file=sys.stderr)
    frozen.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Prompts(texts=texts, states_of=lambda numbers_B: frozen.encode([texts[k] for k in numbers_B]))


def of_split(split: Split, shuffled: bool = False) -> Prompts:
    """The first caption of each image, in order; shuffled: in the fixed order of held-out images, so that few of them are of all kinds."""
    index_N = order(split.size) if shuffled else np.arange(split.size, dtype=np.int64)
    texts = tuple(captions[0] for captions in split.captions(index_N))

    def states(numbers_B: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(split.texts(index_N[numbers_B], np.zeros(len(numbers_B))))

    return Prompts(texts=texts, states_of=states)
