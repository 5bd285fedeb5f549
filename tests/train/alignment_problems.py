"""A small model, features of every group and samples on which alignments are tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gsnr.train.alignments import AlignmentModule
from gsnr.train.config import ModelConfig, resolve_alignment
from gsnr.train.objective import make_alignment

GROUPS = {"G1": (4, 3, 2, 2), "G2": (3, 5, 2, 2), "G3": (4, 6, 2, 2), "G4": (4, 6, 2, 2), "teacher": (1, 7, 2, 2)}
MODEL = ModelConfig(input_size=4, patch_size=2, hidden_size=8, depth=3, num_heads=2, num_classes=5)


def made(name: str, model: ModelConfig = MODEL, groups: dict[str, tuple[int, ...]] = GROUPS, **options: Any) -> AlignmentModule:
    return make_alignment(resolve_alignment({"name": name} | options, model), model, groups)


def batch_of(b: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = {name: torch.randn(b, *shape, generator=g).half() for name, shape in GROUPS.items()}
    batch |= {"t": torch.rand(b, generator=g), "offset_u": torch.rand(b, generator=g), "label": torch.randint(5, (b,), generator=g)}
    return batch | {"latent": torch.randn(b, 4, 4, 4, generator=g), "noise": torch.randn(b, 4, 4, 4, generator=g)}


def hidden(b: int = 3) -> torch.Tensor:
    return torch.randn(b, 4, 8, generator=torch.Generator().manual_seed(7))


def randomised(alignment: AlignmentModule) -> AlignmentModule:
    torch.manual_seed(1)
    for p in alignment.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return alignment


class TrainSplit:
    """Stands for a cache's train split: known statistics."""

    def statistics(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(3)
        found = {}
        for group, shape in GROUPS.items():
            found[f"{group}_mean"] = rng.normal(size=shape[:2]).astype(np.float32)
            found[f"{group}_std"] = rng.uniform(0.5, 2, size=shape[:2]).astype(np.float32)
        found["G4_std"][0, 0] = 0.0
        return found
