"""Single bits of files of a run, a cache, tables and an interrupted measurement fall over: is it noticed?

Each time one bit of one file is another one. It is noticed where what reads the file refuses (`checkpoint.load` with either weights, --resume,
`cache.open_cache` and every row of it, `table.read`, `ResumeCache`), or where `gsnr verify` says so. A flip got through where neither does and
what is read is not what it was. Where both pass over it and all is as it was (a space that became a tab), nothing is wrong.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gsnr import checksums, logs, table
from gsnr.probes.common import command as probe
from gsnr.probes.common.resume_cache import ResumeCache
from gsnr.train import command, optimizer, verify
from gsnr.train.config import resolve
from gsnr.train.data import cache
from gsnr.train.loader_benchmark import synthetic_cache
from gsnr.train.objective import Objective
from gsnr.train.presets import find
from gsnr.train.runs import checkpoint, training_state
from gsnr.train.runs import folder as runfolder

TIMES = 500
PROBE = ["--probe", "alignment,controls", "--bins", "2", "--n-images", "16", "--fit-samples", "128", "--fit-steps", "3", "--targets", "own"]
WORDS = ["--preset", "smoke", "--trackers", "none", "--steps", "10", "--save-every", "5"]


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
    """Makes of a run what versions before checksums wrote."""
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


def read_run(run: Path) -> list[Any]:
    """All that commands read of a run, restored as --resume does."""
    loaded = checkpoint.load(run, "raw")
    average = checkpoint.load(run, "ema")
    runfolder.check(run, loaded.config, resume=True)
    objective, ema = Objective(loaded.model, loaded.alignment), Objective(average.model, average.alignment)
    adamw = optimizer.make(objective, loaded.config.optim)
    state = training_state.restore(checkpoint.locate(run), objective, ema, adamw)
    lines = [logs.read(run / name, loaded.step) for name in runfolder.LOGS]
    return [loaded.sha, average.sha, json.dumps(state), *objective.state_dict().values(), *ema.state_dict().values(), json.dumps(lines)]


def read_cache(folder: Path) -> list[Any]:
    """Every row of a cache, and its statistics."""
    header, splits = cache.open_cache(folder, ())
    columns = ("image_id", "label", "mean", "std", *header.groups)
    rows = [splits[split].take(np.arange(splits[split].size), columns) for split in cache.SPLITS]
    return [str(header), *(x for of_split in rows for x in of_split.values()), *splits["train"].statistics().values()]


def read_parts(folder: Path) -> list[Any]:
    """The pieces of an interrupted measurement, made if they are not there."""
    parts, generator = ResumeCache(folder), torch.Generator().manual_seed(0)
    parts.begin({"a": [1, 2.5], "b": "text"}, resume=True)
    made = parts.tensors("x", lambda: {"x": torch.randn(300, generator=generator), "y": torch.arange(6).reshape(2, 3)})
    return [json.dumps(parts.rows("rows", lambda: {"maps": []})), made["x"], made["y"]]


def read_tables(folder: Path) -> list[Any]:
    """All rows of tables, and what they say of themselves."""
    paths = sorted(folder.glob("*.parquet"))
    return [x for path in paths for x in (table.read(path).to_json(double_precision=15), json.dumps(table.provenance(path)))]


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) if isinstance(x, np.ndarray | torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def _notices(work: Callable[[], object]) -> bool:
    """Whether it refuses. Anything but ValueError is raised."""
    try:
        work()
    except ValueError:
        return True
    return False


def attack(n: int, seed: int, folder: Path) -> list[str]:
    rng, through, counts = random.Random(seed), [], Counter[str]()
    synthetic_cache(folder / "cache", resolve(find("smoke")), 300, "int8")
    command.main([*WORDS, "--out", str(folder / "run")])
    probe.main(["--ckpt", str(folder / "run"), *PROBE, "--out", str(folder / "tables")])
    readers = {folder / "tables": read_tables, folder / "run": read_run, folder / "cache": read_cache, folder / "parts": read_parts}
    whole = {place: read(place) for place, read in readers.items()}
    files = {place: sorted(p for p in place.rglob("*") if p.is_file() and p.name != "lock") for place in readers}
    for _ in range(n):
        place = rng.choice(list(readers))
        path = rng.choice(files[place])
        with flipped(path, rng) as where, redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
            found: list[Any] = []
            refused = _notices(lambda place=place, found=found: found.append(readers[place](place)))  # type: ignore[misc]
            told = bool(said.getvalue()) or (place.name in ("run", "cache") and _notices(lambda place=place: verify.main([str(place)])))  # type: ignore[misc]
        same = not refused and _same(found[0], whole[place])
        outcome = "refused" if refused else "told" if told else "harmless" if same else "got through"
        counts[f"{place.name}: {outcome}"] += 1
        if outcome == "got through":
            through.append(f"{path.relative_to(folder)}: bit {where[1]} of byte {where[0]}")
    print(", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    return through
