"""The small problem on which plug-ins are checked: a SiT of width 8, features of every group, a batch, and how a broken rule is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import ModelConfig, resolve_alignment
from gsnr.train.data.batches import Batch
from gsnr.train.models.sit import SiT
from gsnr.train.objective import make_alignment

GROUPS = {"G1": (4, 3, 2, 2), "G2": (3, 5, 2, 2), "G3": (4, 6, 2, 2), "G4": (4, 6, 2, 2), "teacher": (1, 7, 2, 2)}
MODEL = ModelConfig(input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=5)
PARTS = ({"name": "uniform", "source": "deep", "tap": 1}, {"name": "sra2", "tap": 2})  # of `multi`


def hold(rule: bool, plugin: str, broken: str) -> None:
    """Raises ValueError, naming the plug-in, where a rule does not hold."""
    if not rule:
        raise ValueError(f"{plugin}: {broken}")


def alike(a: Tensor, b: Tensor) -> bool:
    """Up to rounding in float32."""
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)


def made(name: str, model: ModelConfig = MODEL, groups: Mapping[str, tuple[int, ...]] = GROUPS, **options: Any) -> AlignmentModule:
    """An alignment with these options, its defaults otherwise, as it starts."""
    chosen = ({"parts": PARTS} if name == "multi" else {}) | options
    return make_alignment(resolve_alignment({"name": name} | chosen, model), model, groups)


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
    batch = {name: torch.randn(b, *shape, generator=g).half() for name, shape in GROUPS.items()}
    batch |= {"t": torch.rand(b, generator=g), "offset_u": torch.rand(b, generator=g), "label": torch.randint(5, (b,), generator=g)}
    return batch | {"latent": torch.randn(b, 4, 4, 4, generator=g), "noise": torch.randn(b, 4, 4, 4, generator=g)}


def prepared(alignment: AlignmentModule, batch: Batch) -> Batch:
    """The batch with what the alignment reads of a moving average."""
    with torch.no_grad():
        return alignment.prepare(batch, sit(5))


def hidden(b: int = 3) -> Tensor:
    """(b, 4, 8)."""
    return torch.randn(b, 4, 8, generator=torch.Generator().manual_seed(7))


class TrainSplit:
    """Stands for a cache's train split: known statistics, one of them a standard deviation of 0."""

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        rng = np.random.default_rng(3)
        found = {}
        for group, shape in GROUPS.items():
            found[f"{group}_mean"] = rng.normal(size=shape[:2]).astype(np.float32)
            found[f"{group}_std"] = rng.uniform(0.5, 2, size=shape[:2]).astype(np.float32)
        found["G4_std"][0, 0] = 0.0
        return found
