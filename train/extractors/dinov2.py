"""`dinov2`: the class token of DINOv2 ViT-L/14 after the final layer norm, images at 224 by antialiased bicubic: FD-DINOv2 (Stein et al. 2023)."""

from __future__ import annotations

import transformers
from torch import Tensor

from gsnr.train.extractors import FeatureExtractor, Images
from gsnr.train.extractors._resize import pillow_bicubic
from gsnr.train.extractors._transformers import normalised, pretrained
from gsnr.train.teacher import IMAGENET
from gsnr.train.weights_hash import weights_hash

SIDE = 224


class Extractor(FeatureExtractor):
    modes = ("bicubic",)
    metrics = ("fdd", "precision", "recall", "density", "coverage")

    def load(self, source: str | None) -> None:
        self.model = pretrained(transformers.Dinov2Model, source or "facebook/dinov2-large", "dinov2")
        self.sha = weights_hash(self.model)

    def random(self) -> None:
        config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
        self.model = transformers.Dinov2Model(config)
        self.sha = weights_hash(self.model)

    def prepare(self, images_BHWC: Images) -> Tensor:
        return normalised(pillow_bicubic(images_BHWC, SIDE), IMAGENET["image_mean"], IMAGENET["image_std"])

    def forward(self, prepared_B: Tensor) -> dict[str, Tensor]:
        return {"pool": self.model(prepared_B).last_hidden_state[:, 0]}
