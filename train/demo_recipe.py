"""How runs at the demo's size are trained, on its digits and on its captions: minutes on two CPU cores."""

from __future__ import annotations

from typing import Any

DEMO_PROJECTOR_WIDTH = 256  # REPA's 2048 is for widths of 768 and more


def demo_recipe() -> dict[str, Any]:
    """What a preset has beside data, model and alignment."""
    return {
        "optim": {"lr": 2e-3, "warmup": 50, "ema": 0.99},
        "steps": 2800,
        "batch": 16,
        "precision": "no",
        "log_every": 10,
        "save_every": 700,
        "sample_every": 1400,
    }
