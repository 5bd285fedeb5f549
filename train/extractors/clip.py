"""`clip`: image embeddings of CLIP ViT-L/14-336, scaled to length 1; images at 336 by antialiased bicubic: CMMD (Jayasumana et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor

from gsnr.train.extractors import FeatureExtractor, Images
from gsnr.train.extractors._resize import pillow_bicubic
from gsnr.train.extractors._transformers import normalised, pretrained
from gsnr.train.weights_hash import weights_hash

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # Radford et al. 2021, arXiv:2103.00020


class Extractor(FeatureExtractor):
    modes = ("bicubic",)
    metrics = ("cmmd",)
    model: Any  # a checker cannot see the types of transformers

    def load(self, source: str | None) -> None:
        self.model = pretrained(transformers.CLIPVisionModelWithProjection, source or "openai/clip-vit-large-patch14-336", "clip")
        self.sha = weights_hash(self.model)

    def random(self) -> None:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
        self.model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=14))
        self.sha = weights_hash(self.model)

    def prepare(self, images_BHWC: Images) -> Tensor:
        return normalised(pillow_bicubic(images_BHWC, self.model.config.image_size), MEAN, STD)

    def forward(self, prepared_B: Tensor) -> dict[str, Tensor]:
        return {"pool": F.normalize(self.model(prepared_B).image_embeds, dim=1)}
