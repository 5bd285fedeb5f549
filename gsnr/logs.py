"""A run's JSON-lines logs: appended to while training, cut back to a step when a run is resumed.

Every line ends with "crc32", of the rest of it. Lines that are damaged, or of steps that are done again, are moved to LOG.cut: nothing is lost.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

from gsnr import files

CHECK = "crc32"


def append(path: Path, line: dict[str, Any]) -> None:
    text = json.dumps(line)
    with files.naming(path), path.open("a") as handle:
        handle.write(f'{text[:-1]}, "{CHECK}": "{zlib.crc32(text.encode()):08x}"}}\n')


def length(path: Path) -> int:
    """Lines; 0 where there is no log."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line without its checksum; None for a damaged one. Lines from before there were checksums have none, and end with a number or a list."""
    text = text.rstrip(b"\n")
    body, found, check = text.rpartition(f', "{CHECK}": "'.encode())
    if (found or text.endswith(b'"}')) and check != f'{zlib.crc32(body + b"}"):08x}"}}'.encode():
        return None
    try:
        line = files.parse_json(body + b"}" if found else text)
        return line if isinstance(line["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None


def read(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The lines up to and including a step; [] where there is no log. Lines that are damaged are passed over, and that is said."""
    texts = path.read_bytes().splitlines() if path.is_file() else []
    lines = [_parsed(text) for text in texts]
    if None in lines:
        print(f"warning: {path}: {lines.count(None)} of {len(lines)} lines are damaged, and left out", file=sys.stderr)
    return [line for line in lines if line is not None and line["step"] <= last_step]


def fault(path: Path, expected: int) -> str | None:
    """What is wrong with a log that had at least `expected` lines; None where nothing is."""
    lines = [_parsed(text) for text in path.read_bytes().splitlines()] if path.is_file() else []
    good = len(lines) - lines.count(None)
    if None not in lines and good >= expected:
        return None
    return f"{path}: {lines.count(None)} of {len(lines)} lines are damaged, {max(0, expected - good)} missing"


def cut_back(path: Path, step: int, expected: int | None = None) -> None:
    """Keeps the lines up to and including `step`; the others go to LOG.cut. expected: how many lines there were at that step, where it is known.

    Damaged and missing lines are reported."""
    kept: list[bytes] = []
    cut: list[bytes] = []
    damaged = 0
    for text in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        line = _parsed(text)
        damaged += line is None
        (kept if line is not None and line["step"] <= step and text.endswith(b"\n") else cut).append(text)
    aside = path.with_name(f"{path.name}.cut")
    if cut:
        with aside.open("ab") as handle:
            handle.writelines(text if text.endswith(b"\n") else text + b"\n" for text in cut)
        with files.replacing(path) as whole:
            whole.write_bytes(b"".join(kept))
    if damaged:
        print(f"warning: {path}: {damaged} damaged lines; they are kept in {aside.name}", file=sys.stderr)
    if expected is not None and len(kept) < expected:
        print(f"warning: {path}: {expected - len(kept)} of the {expected} lines up to step {step} are missing or damaged", file=sys.stderr)
