"""A run's JSON-lines logs: appended to while training, cut back to a step when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gsnr import files


def append(path: Path, line: dict[str, Any]) -> None:
    with files.naming(path), path.open("a") as handle:
        handle.write(json.dumps(line) + "\n")


def read(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The lines up to and including a step; [] where there is no log. A line that a kill left half-written is passed over."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and line.get("step", last_step + 1) <= last_step:
            lines.append(line)
    return lines


def cut_back(path: Path, step: int) -> None:
    """Keeps the lines up to and including `step`."""
    if path.is_file():
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in read(path, step)))
