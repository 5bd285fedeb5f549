"""Presets of text to image: MMDiT on MS-COCO as REPA trains it (its t2i code; AHPA Table 5, C.12), and at the size of the demo with captions.

mmdit-coco, mmdit-coco-ROW, mmdit-demo, mmdit-demo-ROW. Rows of a size differ in the alignment alone: at block 8 of 24, as REPA's, whatever the
method's own rule is; AHPA's router reads t. REPA's code trains 400K steps by default; its author names 150K for the published numbers.
"""

from __future__ import annotations

from typing import Any

from gsnr.train.config import MMDIT
from gsnr.train.demo_recipe import DEMO_PROJECTOR_WIDTH, demo_recipe

COCO, DEMO = "coco", "demo-text"  # sizes; the second is the name of its data, too
TAPS = {COCO: 8, DEMO: 1}  # a third of the depth

VANILLA = "mmdit"
ROWS: dict[str, dict[str, Any]] = {
    VANILLA: {"name": "none"},
    "repa": {"name": "repa", "weight": 0.5},
    "sra2": {"name": "sra2"},
    "ahpa": {"name": "ahpa"},
}
NAMES = {f"mmdit-{short}{'' if row == VANILLA else f'-{row}'}": (row, size) for short, size in (("coco", COCO), ("demo", DEMO)) for row in ROWS}
OF_DEMO = tuple(name for name, (_, size) in NAMES.items() if size == DEMO)


def at(row: str, size: str) -> dict[str, Any]:
    """A row at one of the two sizes."""
    alignment = dict(ROWS[row]) | ({} if row == VANILLA else {"tap": TAPS[size]})
    if size == COCO:
        model = {"kind": MMDIT, "depth": 24, "hidden_size": 768, "num_heads": 24}
        return {"model": model, "alignment": alignment, "optim": {"lr": 1e-4, "clip": 1.0}, "steps": 150_000}
    sizes = {"input_size": 8, "patch_size": 1, "hidden_size": 128, "depth": 4, "num_heads": 4, "text_width": 96, "text_tokens": 16}
    return {
        "data": {"path": DEMO, "workers": 0},
        "model": {"kind": MMDIT, "init_rule": "adaln_zero", **sizes},
        "alignment": alignment | ({"projector_width": DEMO_PROJECTOR_WIDTH} if row == "repa" else {}),
        **demo_recipe(),
    }
