"""The small problem on which plug-ins are checked: a SiT of width 8, features of every group, a batch, and how a broken rule is said."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnr import plugins
from gsnr.options import kinds
from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import ModelConfig, resolve_alignment
from gsnr.train.data.batches import OF_A_VIEW, PICTURE, Batch
from gsnr.train.models.sit import SiT
from gsnr.train.objective import make_alignment

if TYPE_CHECKING:
    from gsnr.train.teacher_attention import AttentiveTeacher

GROUPS = {"G1": (4, 3, 2, 2), "G2": (3, 5, 2, 2), "G3": (4, 6, 2, 2), "G4": (4, 6, 2, 2), "teacher": (1, 7, 2, 2), "vlm": (1, 5, 1, 1)}
MODEL = ModelConfig(input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=5)
PIXELS = 4  # of a picture, a side
WIDTH = 16  # of hidden layers of a head
PARTS = ({"name": "uniform", "source": "deep", "tap": 1}, {"name": "sra2", "tap": 2})  # of `multi`


def alike(a: Tensor, b: Tensor) -> bool:
    """Up to rounding in float32."""
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)


def made(name: str, model: ModelConfig = MODEL, groups: Mapping[str, tuple[int, ...]] = GROUPS, **options: Any) -> AlignmentModule:
    """An alignment with these options, its defaults otherwise, but REPA's wide head narrow, as it starts."""
    narrow = {"projector_width": WIDTH} if "projector_width" in kinds(plugins.find("alignments", name).Config) else {}
    chosen = ({"parts": PARTS} if name == "multi" else narrow) | options
    alignment = make_alignment(resolve_alignment({"name": name} | chosen, model), model, groups)
    if alignment.config.pictures:
        alignment.attach(teacher())
    return alignment


@cache
def teacher() -> AttentiveTeacher:
    """A DINOv2 of 12 layers, seven heads and width 7, at random."""
    import transformers

    from gsnr.train import teacher as teachers
    from gsnr.train.teacher_attention import AttentiveTeacher

    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 7, "num_hidden_layers": 12, "num_attention_heads": 7, "mlp_ratio": 1, "image_size": 4, "patch_size": 2}
    backbone = transformers.Dinov2Model(transformers.Dinov2Config(**size))
    for p in backbone.parameters():
        nn.init.normal_(p, std=0.3)
    tokens = teachers.PatchTokens(backbone, 2, *teachers.IMAGENET.values()).eval().requires_grad_(False)
    frozen = {"name": "contract", "sha": "", "channels": 7, "downsampling": 2, "patch": 2}
    return AttentiveTeacher(teachers.FrozenTeacher(model=tokens, tokens=tokens, **frozen))  # type: ignore[arg-type]


def started(name: str, **options: Any) -> AlignmentModule:
    """The same with weights away from their initial zeros, and statistics taken."""
    alignment = randomised(made(name, **options))
    alignment.calibrate(TrainSplit())  # type: ignore[arg-type]
    return alignment


def randomised(alignment: AlignmentModule) -> AlignmentModule:
    torch.manual_seed(1)
    for p in alignment.parameters():
        nn.init.normal_(p, std=0.15)
    return alignment


def sit(seed: int = 0) -> SiT:
    torch.manual_seed(seed)
    model = SiT(input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=5)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def batch_of(b: int = 3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    batch = {name: torch.randn(b, *shape, generator=g).half() for name, shape in GROUPS.items() if name != "vlm"}
    batch |= {"t": torch.rand(b, generator=g), "offset_u": torch.rand(b, generator=g), "label": torch.randint(5, (b,), generator=g)}
    batch |= {"latent": torch.randn(b, 4, 4, 4, generator=g), "noise": torch.randn(b, 4, 4, 4, generator=g)}
    batch |= {"vlm": torch.randn(b, *GROUPS["vlm"], generator=g).half()}
    return batch | {PICTURE: torch.randint(256, (b, PIXELS, PIXELS, 3), generator=g, dtype=torch.uint8)}


def prepared(alignment: AlignmentModule, batch: Batch) -> Batch:
    """The batch, in views where it reads several, with what the alignment reads of a moving average."""
    with torch.no_grad():
        return alignment.prepare(in_views(batch, alignment.views), sit(5))


def in_views(batch: Batch, views: int) -> Batch:
    """The same images, with that many views each: their times and noise are the first's, turned."""
    if views == 1:
        return batch
    turned = {key: torch.stack([batch[key].roll(k, 0) for k in range(views)], 1) for key in OF_A_VIEW if key in batch}
    return batch | turned


def hidden(b: int = 3) -> Tensor:
    """(b, 4, 8)."""
    return torch.randn(b, 4, 8, generator=torch.Generator().manual_seed(7))


def states(alignment: AlignmentModule) -> dict[int, Tensor]:
    """What an alignment reads of a forward pass on three samples."""
    h_BTD = hidden()
    found = {tap: h_BTD if tap > 0 else torch.cat([h_BTD, h_BTD.flip(1), -h_BTD.flip(2)], -1) for tap in alignment.taps}
    return {tap: x if alignment.views == 1 else torch.stack([x * (k + 1) ** 0.5 + k for k in range(alignment.views)], 1) for tap, x in found.items()}


class TrainSplit:
    """Stands for a cache's train split: known statistics, one of them a standard deviation of 0; features at random."""

    size = 24

    def take(self, index_N: NDArray[np.int64], columns: tuple[str, ...], view: int = 0) -> dict[str, NDArray[np.float16]]:
        """Each image's own."""
        drawn = {group: np.random.default_rng(5).normal(size=(self.size, *GROUPS[group])) for group in columns}
        return {group: x[index_N].astype(np.float16) for group, x in drawn.items()}

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        rng = np.random.default_rng(3)
        found = {}
        for group, shape in GROUPS.items():
            found[f"{group}_mean"] = rng.normal(size=shape[:2]).astype(np.float32)
            found[f"{group}_std"] = rng.uniform(0.5, 2, size=shape[:2]).astype(np.float32)
        found["G4_std"][0, 0] = 0.0
        return found
