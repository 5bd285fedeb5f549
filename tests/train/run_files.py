"""What a run left on the disk, read for comparison."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from gsnr import checksums

CLOCK = ("it_per_s", "wait_share", "wall_s", "crc32")


def lines(path: Path) -> list[dict]:
    """A JSON-lines log without its wall-clock fields, and the checksums that depend on them."""
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in path.read_text().splitlines()]


def hash_again(folder: Path) -> None:
    """After files of a checkpoint or cache were changed by hand: as if they had been written so."""
    (folder / checksums.MANIFEST).write_text(checksums.Manifest.of(folder).text())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{f.relative_to(folder)}:{k}": v for f in sorted(folder.rglob("*.safetensors")) for k, v in load_file(f).items()}


def assert_same_run(a: Path, b: Path, step: int, configs: bool = True) -> None:
    one, two = (tensors(r / "checkpoints" / f"{step:07d}") for r in (a, b))
    assert one.keys() == two.keys() and len(one) > 100
    for name in one:
        assert torch.equal(one[name], two[name]), name
    for log in {"metrics.jsonl", *(path.name for run in (a, b) for path in run.glob("*.jsonl"))}:
        assert lines(a / log) == lines(b / log)
    states = [json.loads((r / "checkpoints" / f"{step:07d}" / "state.json").read_text()) for r in (a, b)]
    if not configs:
        states = [state | {"config": None} for state in states]
    assert states[0] == states[1]
