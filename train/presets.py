"""Presets: what a run differs in from the defaults of `train.config`. One aligned table of sizes, and functions over it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

#          depth  hidden_size  num_heads     (SiT Table 1; the tap follows from the depth, see the alignment's file)
SIZES = {
    "s2":  (12,     384,          6),
    "b2":  (12,     768,         12),
    "l2":  (24,    1024,         16),
    "xl2": (28,    1152,         16),
}  # fmt: skip


def _model(size: str) -> dict[str, Any]:
    depth, hidden_size, num_heads = SIZES[size]
    return {"depth": depth, "hidden_size": hidden_size, "num_heads": num_heads}


def sit(size: str) -> dict[str, Any]:
    """Vanilla SiT at 256x256, with the same recipe as `ahpa`, so that the two differ in the alignment only."""
    return {"model": _model(size), "alignment": {"name": "none"}}


def ahpa(size: str) -> dict[str, Any]:
    """AHPA at 256x256 (README of the authors' repository; Table A.9)."""
    return {"model": _model(size), "alignment": {"name": "ahpa"}}


def demo() -> dict[str, Any]:
    """AHPA on the 64x64 demo data: minutes on two CPU cores."""
    return {
        "data": {"path": "demo", "workers": 0},
        "model": {"input_size": 8, "patch_size": 1, "hidden_size": 96, "depth": 6, "num_heads": 4, "num_classes": 10},
        "alignment": {"name": "ahpa"},
        "optim": {"lr": 2e-3, "warmup": 50, "ema": 0.99},
        "steps": 2800,
        "batch": 16,
        "precision": "no",
        "log_every": 10,
        "save_every": 700,
    }


def smoke() -> dict[str, Any]:
    """Every part of the demo in seconds: for tests and for seeing the moving parts. Its numbers mean nothing."""
    small = demo()
    small["data"] |= {"demo_train": 256, "demo_heldout": 256}
    small["model"] |= {"hidden_size": 32, "depth": 3, "num_heads": 2}
    small["alignment"] |= {"tap": 2}
    return small | {"steps": 30, "batch": 16, "log_every": 5, "save_every": 10}


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {
    "demo": demo,
    "smoke": smoke,
    **{f"sit-{size}": partial(sit, size) for size in SIZES},
    **{f"ahpa-{size}": partial(ahpa, size) for size in SIZES},
}


def find(name: str) -> dict[str, Any]:
    """The preset of that name. Raises ValueError listing the valid ones."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} does not exist; choose from {', '.join(PRESETS)}")
    return PRESETS[name]()
