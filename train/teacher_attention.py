"""The attention of a frozen image teacher, computed in the loop: what lies in a cache are the pictures (`gsnr prepare --features online`).

Queries and keys of four of DINOv2-B's layers take 6 MB an image at 256 pixels, their products 13 MB; the picture takes 0.2 MB.

Shapes: B images, T patch tokens, C width, E = 3 C. A layer's number is counted from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from gsnr.train import teacher as teachers
from gsnr.train.data.cache import ONLINE, Header

NAMES = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))  # of the linear layers, in transformers of today and of 4
HOW = "gsnr prepare --teacher facebook/dinov2-base --features online"


@dataclass(frozen=True)
class AttentiveTeacher:
    """A teacher that has attention. It is frozen: a copy of it is itself. Raises ValueError for one without."""

    teacher: teachers.FrozenTeacher

    def __post_init__(self) -> None:
        if not isinstance(self.teacher.model, teachers.PatchTokens):
            raise ValueError(f"teacher {self.teacher.name!r} is a convolutional network, without attention; make a cache with {HOW}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def heads(self) -> int:
        return self._backbone.config.num_attention_heads

    @property
    def width(self) -> int:
        return self._backbone.config.hidden_size

    @property
    def depth(self) -> int:
        return len(self._backbone.encoder.layer)

    @property
    def _backbone(self) -> Any:
        return self.teacher.model.backbone

    def _linear(self, layer: int) -> list[nn.Module]:
        """The three linear layers of a layer's queries, keys and values."""
        modules = {name.rpartition(".")[2]: module for name, module in self._backbone.encoder.layer[layer - 1].named_modules()}
        return [next(modules[name] for name in names if name in modules) for names in NAMES]

    @torch.no_grad()
    def qkv(self, pictures_BHWC: Tensor, layers: tuple[int, ...], grid: int) -> dict[int, Tensor]:
        """layer -> (B,T,E) float32, its patch tokens' queries, keys and values side by side; the class token and registers are left out.
        pictures: uint8 (B,H,W,3)."""
        self.teacher.model.to(pictures_BHWC.device)
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output, kept=found[layer]: kept.append(output[:, -grid * grid :]))
            for layer in layers
            for module in self._linear(layer)
        ]
        try:
            self.teacher.features(pictures_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1, grid)
        finally:
            for hook in hooks:
                hook.remove()
        return {layer: torch.cat(parts, dim=-1) for layer, parts in found.items()}


@lru_cache(maxsize=1)
def _loaded(name: str) -> AttentiveTeacher:
    return AttentiveTeacher(teachers.load(name))


def of_cache(header: Header) -> AttentiveTeacher:
    """The teacher of a cache of pictures. Raises ValueError where it has none, one without attention, another one now, or no pictures."""
    if not header.teacher:
        raise ValueError(f"{header.data!r}: its cache has no teacher, whose attention is asked for; make one with {HOW}")
    found = _loaded(header.teacher)
    if found.teacher.sha != header.teacher_sha:
        raise ValueError(f"{header.data!r}: was prepared with teacher {header.teacher!r} ({header.teacher_sha[:12]}); that is another one now")
    if header.dtype != ONLINE:
        raise ValueError(f"{header.data!r}: its cache holds no pictures, which the teacher's attention is computed from; make one with {HOW}")
    return found
