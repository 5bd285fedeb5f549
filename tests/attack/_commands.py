"""Every command, with words that work on what `prepared` made: what the attacks call, in forked processes (`tests.forked`).

What a command has written is compared without the fields of its clock: `contents`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gsnr import commands, files, table
from gsnr.train.demo import fit_attributes, fit_teacher, fit_vae, images
from tests import forked
from tests.benchmarks.prepare_speed import pictures
from tests.train import foreign_files
from tests.train.run_files import CLOCK

RUN = "--preset smoke --save-every 2 --log-every 1"
PROBE = "--probe alignment --targets own --bins 2 --n-images 4 --fit-samples 64 --fit-steps 2 --controls none"
PICTURES = "--vae demo --resolution 64 --patch 1 --heldout 8 --shard 8 --workers 0"
SMALL = "--data.demo-train 256 --data.demo-heldout 256 --trackers none --sample-every 0 --batch 4"
TINY = "--data.demo-train 32 --data.demo-heldout 8"
GRID = f"grid --rows sit --steps 2 --out WORK/grid {SMALL}"
MANY = "--n 6 --shard 2 --batch 2 --sampler euler --sampling-steps 2 --out WORK/many.npz"
FOLDER = "a folder"
PRINTED, TIMED = "printed", "timed"
NUMBER = re.compile(rb"-?\d+\.\d+(e[-+]\d+)?")
LEFT = re.compile(r"(^|/)\.[^/]+\.(\d+|gone)(/|$)")  # a checkpoint or cache that was being written, by process, or deleted


def _few_images() -> None:
    """The demo's VAE, teacher and attributes are fitted and measured on 8 images, which takes a second."""
    made = images.images
    fit_vae.TRAIN_IMAGES = fit_teacher.TRAIN_IMAGES = 8
    images.images = lambda split, n, seed=0: made(split, min(n, 8), seed)
    fit_attributes.TRAIN_IMAGES = fit_attributes.RECONSTRUCTED = fit_attributes.HELDOUT = 8


def _own_caches() -> None:
    """The demo's data are made anew, where the command was called."""
    os.environ["GSNR_CACHE"] = str(Path.cwd() / "caches")


@dataclass(frozen=True)
class Attacked:
    """words: of the command line; WORK in one is the folder. grows: what of that folder it may add to or go on with, beside new files.
    prints: what it makes is what it prints, here into WORK/printed. timed: numbers in it are the clock's. once: its output must be new; called
    again, it refuses. ready: see `forked`."""

    words: str
    grows: tuple[str, ...] = ()
    prints: bool = False
    timed: bool = False
    once: bool = False
    ready: Callable[[], object] = int

    @property
    def command(self) -> str:
        return self.words.split()[0]

    @property
    def printed(self) -> str:
        """The name of the file that holds what it prints."""
        return TIMED if self.timed else PRINTED


COMMANDS = {
    "train": Attacked(f"train {RUN} --trackers none --steps 4 --out WORK/new --resume", ("new",)),
    "train, tensorboard": Attacked(f"train {RUN} --steps 4 --out WORK/new --resume", ("new",)),
    "train, demo data": Attacked(f"train {RUN} {TINY} --trackers none --steps 1 --out WORK/new --resume", ("new", "caches"), ready=_own_caches),
    "resume": Attacked(f"train {RUN} --trackers none --steps 6 --out WORK/run --resume", ("run",)),
    "probe": Attacked(f"probe --ckpt WORK/run {PROBE} --overwrite --resume", ("run/probes/.alignment.resume",)),
    "prepare": Attacked(f"prepare --data WORK/pictures {PICTURES} --out WORK/cache", (".cache.preparing",)),
    "grid": Attacked(GRID),
    "fork": Attacked("fork --ckpt WORK/run --rows repa@1 --steps 2 --n-images 8 --out WORK/forks"),
    "recommend": Attacked(
        "recommend --ckpt WORK/run --rows uniform-deep@1,shuffled:uniform-deep@1 --criteria cosine --n-images 16 --train-images 16 --out WORK/rec"
    ),
    "figures": Attacked("figures --run WORK/run --figure fig2_gsnr,fig_blocks"),
    "tables": Attacked("tables --run WORK/run"),
    "report": Attacked("report --run WORK/run"),
    "sample": Attacked("sample --ckpt WORK/run --classes 1 --per-class 1 --sampling-steps 1"),
    "sample, many": Attacked(f"sample --ckpt WORK/run {MANY}", (".many.npz.sampling",)),
    "convert": Attacked(f"convert --ckpt WORK/foreign.pt --from sit --model {foreign_files.MODEL} --out WORK/converted", once=True),
    "fit-demo-vae": Attacked("fit-demo-vae --steps 1 --batch 1 --out WORK/vae", once=True, ready=_few_images),
    "fit-demo-teacher": Attacked("fit-demo-teacher --steps 1 --batch 4 --out WORK/teacher", once=True, ready=_few_images),
    "fit-demo-attributes": Attacked("fit-demo-attributes --steps 1 --batch 4 --out WORK/attributes", once=True, ready=_few_images),
    "loader": Attacked("loader --preset smoke --synthetic 32 --steps 5 --data.workers 0 --folder WORK/place"),
    "verdict": Attacked("verdict --run WORK/run --csv WORK/verdict.csv"),
    "evaluate": Attacked("evaluate --ckpt WORK/run --n-images 8", prints=True),
    "verify": Attacked("verify WORK/run", prints=True),
    "cost": Attacked("cost --size demo --rows sit --macs-only --json", prints=True),
    "bench": Attacked("bench --subjects sit-64 --methods ghost --rounds 1 --batches 1 --no-memory --json", prints=True, timed=True),
    "coverage": Attacked("coverage --repeats 2 --only claim", prints=True),
    "check-plugin": Attacked("check-plugin tests/strangers/wide.py", prints=True),
}
NEW_GRID = Attacked(GRID.replace("WORK/grid", "WORK/new"), ("new",))


def start(attacked: Attacked, work: Path, ready: Callable[[], object] = int) -> forked.Forked:
    """Calls it in its folder."""
    words = [word.replace("WORK", str(work)) for word in attacked.words.split()]
    words = [str(Path(word).absolute()) if word.startswith("tests/") else word for word in words]

    def both() -> None:
        attacked.ready()
        ready()

    return forked.Forked(words, work, work / attacked.printed if attacked.prints else Path(os.devnull), both)


def error_of(command: forked.Forked) -> str:
    """What a command said that failed: without progress bars and notes before its error."""
    found = re.search(r"(?:^|[\r\n])(error: .*|Traceback.*)", command.error, re.DOTALL)
    return found[1] if found else command.error


def done(attacked: Attacked, work: Path) -> None:
    """Calls it undisturbed. Raises AssertionError where it fails."""
    command = start(attacked, work)
    code = command.end()
    assert code == 0, f"gsnr {attacked.words}: exit code {code}: {error_of(command)[-500:]}"


def prepared(folder: Path, names: list[str]) -> Path:
    """What these commands find: a run with tables, figures and a page, a finished grid, pictures, another project's checkpoint."""
    forked.imported(dict.fromkeys(COMMANDS[name].command for name in names))
    work = folder / "work"
    pictures(work / "pictures", 24)
    (work / "place").mkdir()
    foreign_files.write(work / "foreign.pt", *foreign_files.pair(), steps=7)
    done(Attacked(f"train {RUN} --trackers none --steps 4 --out WORK/run"), work)
    for name in ("probe", "figures", "tables", "report", "sample", *(["grid"] if "grid" in names else [])):
        done(COMMANDS[name], work)
    return work.rename(folder / "before")


def fresh(before: Path, work: Path) -> None:
    """work becomes what was before; files keep their times."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(before, work)


def _table(path: Path) -> Any:
    """By itself: a kill between two files of a set leaves both kinds, which `gsnr.table.read` refuses and the same command mends."""
    rows = pd.read_parquet(path).drop(columns="created", errors="ignore")
    about = {key: value for key, value in table.provenance(path).items() if key not in ("created", "rows_sha256")}
    return json.dumps(about, sort_keys=True), rows.to_json(double_precision=15)


def _lines(text: str) -> list[dict[str, Any]]:
    """Of a log, without the clock and a last line that a kill cut short."""
    whole = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in whole]


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".parquet" and path.parent.name == "probes":
            return _table(path)
        if path.suffix == ".jsonl":
            return _lines(path.read_text())
        if path.name == "made.json":
            return json.loads(path.read_text()) | {"minutes": None}
    except ValueError as error:
        return f"damaged: {error}"
    return NUMBER.sub(b"N", path.read_bytes()) if path.name == TIMED else path.read_bytes()


def hidden(name: str) -> bool:
    """Whether a file lies in a folder, or is one, that was to vanish."""
    return any(part.startswith(".") for part in Path(name).parts)


def contents(work: Path) -> dict[str, Any]:
    """name -> what a file holds, hidden ones as bytes, or FOLDER; without locks, TensorBoard's (named by time and
    process), and what going on took out of a log and kept."""
    paths = [path for path in sorted(work.rglob("*")) if path.name != "lock" and path.suffix != ".cut" and "tensorboard" not in path.parts]
    names = {str(path.relative_to(work)): path for path in paths}
    return {name: FOLDER if path.is_dir() else path.read_bytes() if hidden(name) else _content(path) for name, path in names.items()}


def grown(name: str, before: Any, after: dict[str, Any]) -> bool:
    """Whether a file of a run was changed as going on changes it: logs by more lines, LAST to a checkpoint that is there, other options."""
    now = after.get(name)
    if name.endswith(".jsonl"):
        return now is not None and now[: len(before)] == before
    if name.endswith("/LAST"):
        last = (now or b"").decode().strip()
        return last > before.decode().strip() and f"{Path(name).parent}/checkpoints/{last}/state.json" in after
    return name.endswith("/config.json") and "/checkpoints/" not in name and bool(json.loads(now or b"{}"))


def leftover(name: str) -> bool:
    """Whether it is what a command was writing, or deleting."""
    return files.ASIDE in name or LEFT.search(name) is not None


def unknown() -> set[str]:
    """Commands that are not attacked."""
    return set(commands.COMMANDS) - {attacked.command for attacked in COMMANDS.values()}
