"""`attributes`: whether images show what the captions of the demo name, judged by its small network (`gsnr.train.demo.attributes`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gsnr.train.demo import attributes
from gsnr.train.demo.captioned import RESOLUTION
from gsnr.train.demo.captions import numbers, withheld
from gsnr.train.extractors import FeatureExtractor, Images
from gsnr.train.prepare.encode import to_pixels
from gsnr.train.weights_hash import weights_hash


class Extractor(FeatureExtractor):
    """pairs (B,A+1): by how much the logit of what the caption names exceeds the largest other, of each attribute, so that it is right where this is
    above 0; then 1 where the combination is withheld from training, else 0."""

    modes = ("native",)
    metrics = ("attribute_accuracy",)
    gives = ("pairs",)
    reads_captions = True

    def load(self, source: str | None) -> None:
        self.model = attributes.load(source or attributes.FOLDER)
        self.sha = weights_hash(self.model)

    def random(self) -> None:
        self.load(None)

    def prepare(self, images_BHWC: Images) -> Tensor:
        height, width = images_BHWC.shape[1:3]
        if (height, width) != (RESOLUTION, RESOLUTION):
            raise ValueError(f"features attributes: images must be those of the demo, {RESOLUTION} x {RESOLUTION}, not {height} x {width}")
        return to_pixels(images_BHWC)

    def forward(self, prepared_B: Tensor, captions: Sequence[str] = ()) -> dict[str, Tensor]:
        asked_BA = numbers(captions)
        margins = []
        for number_B, logits_BK in zip(asked_BA.T, self.model(prepared_B).values(), strict=True):
            at_B1 = torch.from_numpy(number_B)[:, None].to(logits_BK.device)
            others_BK = logits_BK.scatter(1, at_B1, -torch.inf)
            margins.append(logits_BK.gather(1, at_B1)[:, 0] - others_BK.amax(1))
        apart_B = torch.from_numpy(withheld(asked_BA)).to(margins[0])
        return {"pairs": torch.stack([*margins, apart_B], dim=1)}
