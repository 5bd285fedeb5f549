"""Where what is made on first use is kept."""

from __future__ import annotations

import os
from pathlib import Path

DEMO, TEXT_DEMO = DEMOS = "demo", "demo-text"  # --data.path: names of data that are made on first use, and no paths


def cache_root() -> Path:
    """$GSNR_CACHE, or ~/.cache/gsnr."""
    return Path(os.environ.get("GSNR_CACHE") or Path.home() / ".cache" / "gsnr")
