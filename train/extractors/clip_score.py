"""`clip_score`: image and caption in CLIP ViT-L/14."""

from __future__ import annotations

from gsnr.train.extractors._clip_pairs import ClipPairs


class Extractor(ClipPairs):
    metrics = ("clip_score",)
    default = "openai/clip-vit-large-patch14"
