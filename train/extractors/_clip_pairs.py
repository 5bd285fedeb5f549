"""CLIP's judgement of pairs: how near an image's embedding is to its caption's (Radford et al. 2021, arXiv:2103.00020).

Images are prepared as transformers' CLIPProcessor does without torchvision: RGB, Pillow's bicubic to the network's side, the middle, normalised.
Captions longer than the model's positions are cut off. Shapes: B images of (H,W), S side of the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

from gsnr.train.demo import text_encoder
from gsnr.train.extractors import FeatureExtractor, Images
from gsnr.train.extractors._resize import channels_first
from gsnr.train.extractors._transformers import normalised, pretrained
from gsnr.train.extractors.clip import MEAN, STD
from gsnr.train.teacher import quiet
from gsnr.train.weights_hash import weights_hash


def middle(image_HWC: Images, side: int) -> Images:
    """(S,S,3): resized so that its shorter side is S, then its middle."""
    height, width = image_HWC.shape[:2]
    short = min(height, width)
    wide, high = (side if size == short else int(side * size / short) for size in (width, height))
    resized = np.asarray(Image.fromarray(image_HWC).resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - side) // 2, (wide - side) // 2
    return resized[top : top + side, left : left + side]


class ClipPairs(FeatureExtractor):
    """pairs (B,2): the cosine of image and caption, and exp(logit_scale), the model's own."""

    modes = ("bicubic",)
    gives = ("pairs",)
    reads_captions = True
    default: ClassVar[str]  # hub id
    model: Any  # a checker cannot see the types of transformers

    def load(self, source: str | None) -> None:
        name, found = type(self).__module__.rpartition(".")[2], source or self.default
        self.model = pretrained(transformers.CLIPModel, found, name)
        try:
            with quiet():
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(found)
        except Exception as error:  # the library raises a dozen kinds for a missing, damaged or foreign file
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"features {name}: {found!r}: its tokenizer cannot be loaded: {reason}") from error
        self._hash()

    def random(self) -> None:
        tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
        self.tokenizer = text_encoder.tokenizer()
        ends = {f"{end}_token_id": getattr(self.tokenizer, f"{end}_token_id") for end in ("pad", "bos", "eos")}
        text = tower | ends | {"vocab_size": len(self.tokenizer), "max_position_embeddings": self.tokenizer.model_max_length}
        config = transformers.CLIPConfig(text_config=text, vision_config=tower | {"image_size": 28, "patch_size": 14}, projection_dim=8)
        self.model = transformers.CLIPModel(config)
        self._hash()

    def _hash(self) -> None:
        words = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        self.sha = weights_hash(self.model, hashlib.sha256(words.encode()).hexdigest())

    def prepare(self, images_BHWC: Images) -> Tensor:
        side = self.model.config.vision_config.image_size
        return normalised(channels_first(np.stack([middle(image, side) for image in images_BHWC])), MEAN, STD)

    def forward(self, prepared_B: Tensor, captions: Sequence[str] = ()) -> dict[str, Tensor]:
        positions = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, max_length=positions, return_tensors="pt").to(prepared_B.device)
        out = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=prepared_B)
        cosine_B = F.cosine_similarity(out.image_embeds, out.text_embeds, dim=1)
        return {"pairs": torch.stack([cosine_B, self.model.logit_scale.exp().expand_as(cosine_B)], dim=1)}
