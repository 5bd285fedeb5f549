"""Small text encoders in the hub's format: a CLIP text model of random weights and a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "a", "red", "blue", "seven", "zero", "café", "on", "grey")
POSITIONS, WIDTH = 6, 32


def text_encoder(folder: Path, width: int = WIDTH, seed: int = 0, words: tuple[str, ...] = WORDS, positions: int = POSITIONS) -> Path:
    """Saved to the folder."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
    config = transformers.CLIPTextConfig(
        **sizes, vocab_size=len(words), max_position_embeddings=positions, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)])
    names = {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder
