"""What an image of the demo with captions shows, judged by a small network: the measure of GenEval (Ghosh et al. 2023, arXiv:2310.11513).

One trunk, a head for each attribute; the repository ships what `gsnr fit-demo-attributes` wrote. Its weights are no one's alignment target.
Shapes: B images, R = 64 their side, C channels, A attributes. Pixels in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from gsnr.train.demo.captions import ATTRIBUTES, VALUES
from gsnr.train.models.convnet import GROUPS, ResidualBlock
from gsnr.train.teacher import quiet

FOLDER = Path(__file__).parent / "assets" / "demo_attributes"
SIDE = 8  # places of the last map, a side, of an image of 64
SQUEEZED = 4  # channels that the head of the place reads at each of them


class AttributeNet(ModelMixin, ConfigMixin):
    """model(images (B,3,64,64)) -> attribute: logits (B, its values). All but the place are read from the mean and the largest of the last map."""

    @register_to_config
    def __init__(self, *, widths: tuple[int, ...] = (32, 64)) -> None:
        super().__init__()
        levels = [nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), ResidualBlock(o)) for i, o in zip((3, *widths), widths, strict=False)]
        self.levels = nn.Sequential(*levels)
        self.norm = nn.GroupNorm(GROUPS, widths[-1])
        self.squeeze = nn.Conv2d(widths[-1], SQUEEZED, 1)
        inputs = {name: SQUEEZED * SIDE**2 if name == "place" else 2 * widths[-1] for name in ATTRIBUTES}
        self.heads = nn.ModuleDict({name: nn.Linear(inputs[name], len(VALUES[name])) for name in ATTRIBUTES})

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        map_BCHW = F.silu(self.norm(self.levels(F.avg_pool2d(images_BCHW, 2))))
        pooled_BC = torch.cat([map_BCHW.mean((2, 3)), map_BCHW.amax((2, 3))], dim=1)
        where_BC = self.squeeze(map_BCHW).flatten(1)
        return {name: head(where_BC if name == "place" else pooled_BC) for name, head in self.heads.items()}

    def named(self, images_BCHW: Tensor) -> Tensor:
        """(B,A) int64: the number, in `VALUES`, of the value with the largest logit."""
        return torch.stack([logits_BK.argmax(1) for logits_BK in self(images_BCHW).values()], dim=1)


def load(source: str | Path = FOLDER) -> AttributeNet:
    """float32, eval mode, no gradients. Raises ValueError naming the folder where it is missing, damaged or another network's."""
    try:
        with quiet():
            model, notes = AttributeNet.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True)
        lacking = sorted([*notes["missing_keys"], *(key for key, *_ in notes["mismatched_keys"])])
        if lacking:
            raise ValueError(f"its weights lack {lacking[0]}, or have it in another shape")
    except Exception as error:  # diffusers raises a dozen kinds for a missing, damaged or foreign folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"attributes {str(source)!r}: cannot be loaded (name a folder that `gsnr fit-demo-attributes` wrote): {reason}") from error
    return model.float().eval().requires_grad_(False)
