"""A run's JSON-lines logs: appended to while training, cut back to a step when a run is resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as handle:
        handle.write(json.dumps(line) + "\n")


def cut_back(path: Path, step: int) -> None:
    """Keeps the lines up to and including `step`; a line that a kill left half-written goes too."""
    if not path.is_file():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["step"] <= step:
            kept.append(text + "\n")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text("".join(kept))
    os.replace(aside, path)
