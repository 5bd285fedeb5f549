"""`demo`: the demo's small teacher, averaged over its tokens: distances at demo scale, with nothing to download. No FID."""

from __future__ import annotations

import torch
from torch import Tensor

from gsnr.train import teacher
from gsnr.train.extractors import FeatureExtractor, Images
from gsnr.train.prepare.encode import to_pixels


class Extractor(FeatureExtractor):
    modes = ("native",)
    metrics = ("fid", "precision", "recall", "density", "coverage")

    def load(self, source: str | None) -> None:
        self.teacher = teacher.load(source or "demo")
        self.model, self.sha = self.teacher.model, self.teacher.sha

    def random(self) -> None:
        self.load(None)

    def prepare(self, images_BHWC: Images) -> Tensor:
        height, width = images_BHWC.shape[1:3]
        if height != width:
            raise ValueError(f"features demo: images must be square, not {height} x {width}")
        self.teacher.grid(height)
        return to_pixels(images_BHWC)

    def forward(self, prepared_B: Tensor) -> dict[str, Tensor]:
        return {"pool": torch.as_tensor(self.teacher.features(prepared_B)).mean((2, 3))}
