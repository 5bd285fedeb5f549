"""REPA's text-to-image checkpoints (its models/mmdit.py, train_t2i.py): their tensors under our MMDiT's names, and what tells them apart.

Width is 32 x depth and heads are as many as blocks in its code. A file does not hold the empty caption's states, which guidance needs: they are
given, as U-ViT's preparation of MS-COCO leaves them (empty_context.npy, (L,C)).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gsnr.train.config import MMDIT, ModelConfig

if TYPE_CHECKING:
    from gsnr.train.convert.foreign import Foreign

KIND = "repa-t2i"
RENAMED = ((r"^joint_blocks\.", "blocks."), (r"\.context_block\.", ".context."), (r"\.x_block\.", ".x."))
TOLD_BY = ("x_embedder.proj.weight", "pos_embed", "context_embedder.weight", "blocks.0.x.mlp.fc1.weight", "final_layer.linear.weight")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its tensors under our names; a state of another project as it is."""
    if not any(name.startswith("joint_blocks.") for name in state):
        return state
    found = {}
    for name, tensor in state.items():
        for theirs, ours in RENAMED:
            name = re.sub(theirs, ours, name)
        found[name] = tensor
    return found


def is_one(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether a state, `renamed`, is of this project. Raises ValueError, naming the tensor, where one lacks what all have, or has it in a shape that
    no such model has."""
    if not any(name.startswith(("blocks.0.x.", "blocks.0.context.")) for name in state):
        return False
    lacking = [name for name in TOLD_BY if name not in state]
    if lacking:
        raise ValueError(f"{path}: an MMDiT by its blocks, but it lacks {lacking[0]}")
    ndims = {"x_embedder.proj.weight": 4, "pos_embed": 3}
    odd = [name for name in TOLD_BY if state[name].ndim != ndims.get(name, 2) or not state[name].numel()]
    if odd or math.isqrt(places := state["pos_embed"].shape[1]) ** 2 != places:
        name = odd[0] if odd else "pos_embed"
        raise ValueError(f"{path}: tensor {name!r} has shape {tuple(state[name].shape)}, which no MMDiT on square latents has")
    return True


def architecture(found: Foreign) -> ModelConfig:
    """As its code makes it; the number of text places is that of `null_text`."""
    state, (depth, width, patch) = found.tensors, found.size
    if width % depth:
        raise ValueError(f"{found.path}: width {width} is no multiple of its {depth} blocks, which are as many as heads in REPA's code")
    return ModelConfig(
        kind=MMDIT,
        input_size=math.isqrt(state["pos_embed"].shape[1]) * patch,
        patch_size=patch,
        in_channels=state["x_embedder.proj.weight"].shape[1],
        hidden_size=width,
        depth=depth,
        num_heads=depth,
        mlp_ratio=len(state["blocks.0.x.mlp.fc1.weight"]) / width,
        text_width=state["context_embedder.weight"].shape[1],
    )


def null_text(path: Path) -> Tensor:
    """(L,C) float32. Raises ValueError naming the file for one that holds no such array."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"--null-text {path}: cannot be read as a .npy file ({error})") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or not found.size or not np.isfinite(found).all():
        raise ValueError(f"--null-text {path}: holds no array of finite numbers, the states of the empty caption")
    states_LC = found[0] if found.ndim == 3 and len(found) == 1 else found
    if states_LC.ndim != 2:
        raise ValueError(f"--null-text {path}: of shape {found.shape}; (places, channels) are needed")
    return torch.from_numpy(np.ascontiguousarray(states_LC, dtype=np.float32))
