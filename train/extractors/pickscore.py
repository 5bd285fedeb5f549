"""`pickscore`: image and caption in the CLIP that was fitted to people's choices (Kirstain et al. 2023, arXiv:2305.01569)."""

from __future__ import annotations

from gsnr.train.extractors._clip_pairs import ClipPairs


class Extractor(ClipPairs):
    metrics = ("pickscore",)
    default = "yuvalkirstain/PickScore_v1"
