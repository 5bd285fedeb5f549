"""Frozen text encoders: a caption becomes the states that a text-to-image model reads.

    states = CLIPTextModel(token ids).last_hidden_state        (Radford et al. 2021, arXiv:2103.00020)

As in U-ViT and REPA a caption is truncated or padded to all of the model's positions, and no mask is given: what pads is attended to as well.

Shapes: N captions, L positions (77 of CLIP), C channels (768 of CLIP ViT-L/14).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from gsnr.train.demo import text_encoder
from gsnr.train.teacher import quiet
from gsnr.train.weights_hash import weights_hash

KINDS = ("clip_text_model", "clip")  # model_type in config.json
DEMO = "demo"  # the name of the demo's own encoder
TOGETHER = 64  # captions in one pass


@dataclass(frozen=True, kw_only=True)
class FrozenText:
    """name: as asked for; sha: hash of its weights and its tokenizer's vocabulary; shape: (L,C)."""

    model: Any  # a checker cannot see the types of transformers
    tokenizer: Any
    name: str
    sha: str
    shape: tuple[int, int]

    def _ids(self, captions: Sequence[str], **options: Any) -> list[list[int]]:
        """Raises ValueError, naming the encoder, for captions that its tokenizer or its table of tokens cannot take."""
        try:
            with quiet():
                ids = self.tokenizer(list(captions), **options)["input_ids"]
        except Exception as error:  # tokenizers raise a dozen kinds, bare ones among them
            raise ValueError(f"text encoder {self.name!r}: its tokenizer fails ({' '.join(str(error).split())})") from error
        most = self.model.config.vocab_size
        for caption, row in zip(captions, ids, strict=True):
            if max(row, default=0) >= most:
                raise ValueError(f"text encoder {self.name!r}: {caption!r} has token {max(row)}, its model knows 0 to {most - 1}")
        return ids

    def too_long(self, captions: Sequence[str]) -> list[int]:
        """The numbers of those captions that are cut off at the model's positions."""
        return [k for k, row in enumerate(self._ids(captions)) if len(row) > self.shape[0]] if captions else []

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """(N,L,C) float32, where the model is; also under autocast. A caption's states are its own, but for the last bits."""
        device = self.model.device
        parts = [torch.empty(0, *self.shape, device=device)]
        for start in range(0, len(captions), TOGETHER):
            ids = self._ids(captions[start : start + TOGETHER], padding="max_length", truncation=True, max_length=self.shape[0])
            with torch.autocast(device.type, enabled=False):
                parts.append(self.model(torch.tensor(ids, device=device)).last_hidden_state)
        return torch.cat(parts)


def _stored(source: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder or hub id. Raises whatever the libraries do."""
    kind = transformers.AutoConfig.from_pretrained(source).model_type
    if kind not in KINDS:
        raise ValueError(f"its config.json names {kind}, not one of {', '.join(KINDS)}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has no token that pads")
    model, notes = transformers.CLIPTextModel.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True)
    lacking = sorted([*notes["missing_keys"], *(key for key, *_ in notes["mismatched_keys"])])
    if lacking:
        raise ValueError(f"its weights lack {lacking[0]}, or have it in another shape")
    return model, tokenizer


def load(name: str) -> FrozenText:
    """A text encoder, float32, eval mode, no gradients. name: "demo", a folder in the Hugging Face format, or a hub id
    (openai/clip-vit-large-patch14).

    Raises ValueError naming the encoder where it is missing, damaged or of another kind."""
    try:
        with quiet():
            model, tokenizer = _stored(str(text_encoder.folder()) if name == DEMO else name)
    except Exception as error:  # the libraries raise a dozen kinds for a missing, damaged or foreign folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what_then = f"delete {text_encoder.place()}, and it is made anew" if name == DEMO else "name a CLIP text model's folder or hub id"
        raise ValueError(f"text encoder {name!r} cannot be loaded ({what_then}): {reason}") from error
    model = model.float().eval().requires_grad_(False)
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
    shape = model.config.max_position_embeddings, model.config.hidden_size
    return FrozenText(model=model, tokenizer=tokenizer, name=name, sha=weights_hash(model, vocabulary), shape=shape)


def encode(name: str, captions: Sequence[str], device: str | torch.device = "cpu") -> Tensor:
    """(N,L,C) float32 on the device: the states of captions by the text encoder of that name. Raises ValueError as `load` does."""
    frozen = load(name)
    frozen.model.to(device)
    return frozen.encode(captions)
