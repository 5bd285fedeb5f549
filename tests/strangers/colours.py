"""A stranger's extractor: mean colours of a grid of 4 x 4, by a network without weights of its own."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from gsnr.train.extractors import FeatureExtractor, Images
from gsnr.train.extractors._resize import channels_first


class Extractor(FeatureExtractor):
    modes = ("native",)
    metrics = ("fid", "recall")

    def load(self, source: str | None) -> None:
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.sha = hashlib.sha256(b"4 x 4").hexdigest()

    def random(self) -> None:
        self.load(None)

    def prepare(self, images_BHWC: Images) -> Tensor:
        return channels_first(images_BHWC) / 255

    def forward(self, prepared_B: Tensor) -> dict[str, Tensor]:
        return {"pool": self.model(prepared_B)}
