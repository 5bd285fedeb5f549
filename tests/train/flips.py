"""Single-bit damage, and runs as they were before there were checksums."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gsnr import checksums


@contextmanager
def flipped(path: Path, rng: random.Random) -> Iterator[tuple[int, int]]:
    """One bit of a file is another one meanwhile: (byte, bit)."""
    where, bit = rng.randrange(path.stat().st_size), rng.randrange(8)

    def flip() -> None:
        with path.open("r+b") as handle:
            handle.seek(where)
            byte = handle.read(1)[0]
            handle.seek(where)
            handle.write(bytes([byte ^ (1 << bit)]))

    flip()
    try:
        yield where, bit
    finally:
        flip()


def without_checksums(run: Path) -> None:
    """A run as versions before checksums wrote it."""
    for manifest in run.rglob(checksums.MANIFEST):
        manifest.unlink()
    for path in run.rglob("state.json"):
        state = json.loads(path.read_text())
        del state["manifest"], state["logs"], state["cache"]["rows_sha"]
        path.write_text(json.dumps(state))
    config = json.loads((run / "config.json").read_text())
    del config["sha256"]
    (run / "config.json").write_text(json.dumps(config))
    for log in run.glob("*.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "crc32"}) + "\n" for line in lines))
