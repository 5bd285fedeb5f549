"""The demo's text encoder: a CLIP text model of random, frozen weights, with a tokenizer that knows the words of the demo's captions and no others.

Random features tell the captions of a closed vocabulary apart: a word's embedding stays readable in its state, and the positions' keep the order.
Nothing is trained and nothing is shipped: the folder, in the hub's format, is made where it is first needed. Weights are uniform numbers of
torch's CPU generator, which are exact products of integers and powers of two, so the same on every machine; its hash is in a test.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import normalizers, pre_tokenizers, processors

from gsnr import files
from gsnr.train.cache_root import cache_root
from gsnr.train.demo.captions import vocabulary
from gsnr.train.teacher import quiet

SPECIAL = PAD, BEGIN, END, UNKNOWN = "[PAD]", "[BOS]", "[EOS]", "[UNK]"
SHAPE = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
SEED = 0
SPREAD = {"token_embedding": 1.0, "position_embedding": 0.5}  # half-width of the uniform numbers; of other matrices sqrt(3 / inputs)
VERSION = 1


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """[BOS] words [EOS], in lower case, split at white space."""
    words = {word: number for number, word in enumerate((*SPECIAL, *vocabulary()))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=UNKNOWN))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, words[token]) for token in (BEGIN, END)]
    made.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ends)
    named = {"pad_token": PAD, "bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named, model_max_length=SHAPE["max_position_embeddings"])


@torch.no_grad()
def model() -> transformers.CLIPTextModel:
    """float32, eval mode."""
    words = (*SPECIAL, *vocabulary())
    numbers = {"pad_token_id": words.index(PAD), "bos_token_id": words.index(BEGIN), "eos_token_id": words.index(END)}
    made = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=len(words), **SHAPE, **numbers)).eval()
    generator = torch.Generator().manual_seed(SEED)
    for name, weight in made.named_parameters():
        if weight.ndim == 1:  # norms and biases
            weight.fill_(1.0 if name.endswith("norm1.weight") or name.endswith("norm2.weight") or name.endswith("norm.weight") else 0.0)
            continue
        half = next((spread for layer, spread in SPREAD.items() if layer in name), (3 / weight.shape[1]) ** 0.5)
        weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * half)
    return made


def place() -> Path:
    """Where it lies; the name is a hash of what it is made from."""
    made_of = {"version": VERSION, "shape": SHAPE, "seed": SEED, "spread": SPREAD, "words": vocabulary(), "transformers": transformers.__version__}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    return cache_root() / f"demo-text-encoder-{key}"


def folder() -> Path:
    """The same, made if it is not there."""
    path = place()
    if not path.is_dir():
        with files.making(path) as aside, quiet():
            model().save_pretrained(aside)
            tokenizer().save_pretrained(aside)
    return path
