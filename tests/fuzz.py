"""Wrong command lines, by the thousand: each must end in one line of error and exit code 2, or do its work.

    python -m tests.fuzz --n 1000 --seed 0

Every line is a command that would work (on a tiny run that is trained first), with one to three of its flags given odd values, or flags that do
not exist. It is called in a forked process of its own, with the memory and time below, in a folder of its own. A fault is a traceback, more than
one line of error, another exit code, an error after which files lie about, and what takes the memory. A line that is still at work when its time
is up is told and counted, and is no fault. Prints the faults with their lines, as a shell would take them, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shlex
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from gsnr import commands
from gsnr.declared import declared, file_of
from tests import forked

MEMORY, SECONDS = 12 << 30, 20.0  # of address space, of which importing torch takes 4; of a line
NUMBERS = ("-1", "0", "3", "100000", "1000000000", "99999999999999999999", "1e400", "nan", "-inf", "1e-400", "1_0", "0x10", "½", "1,2", "1.5")
WORDS = ("", ",", "a,,b", "none", "true", "demo", "[" * 5000, '{"a":', '[{"name": []}]', "x" * 5000, "日本", "\x1b[31mred", "a\nb", "*", "--", "-")
PATHS = ("", "~", "~/x", "s3://bucket/x", "file:///x", "nowhere", "x" * 300, "a\nb", "/proc/self/mem", "/dev/zero", "../..", "deep.json", "bomb.pt")
PATHS += ("text.pt", "empty", "empty.parquet", "pictures", "pipe", "loop", "text.txt/x")
OUTPUTS = ("", "~", "s3://bucket/x", "text.txt", "text.txt/x", "pictures", "loop", "/proc/x", "x" * 300, "new/a\nb")
BASES = {
    "train": "--preset smoke --steps 2 --out new",
    "probe": "--ckpt run --bins 1 --n-images 4 --fit-steps 2 --fit-samples 64 --train-images 16 --out new",
    "prepare": "--data pictures --vae demo --out new --resolution 64 --heldout 1",
    "sample": "--ckpt run --per-class 1 --classes 1 --sampling-steps 1 --out new.png",
    "evaluate": "--ckpt run --n-images 4",
    "convert": "--ckpt text.pt --out new",
    "grid": "--rows sit --steps 1 --out new",
    "cost": "--size demo --rows sit --rounds 1 --batch 1 --macs-only",
    "loader": "--preset smoke --steps 5",
    "figures": "--run run --out new",
    "tables": "--run run --out new",
    "report": "--run run --out new.html",
    "check-plugin": "text.txt",
    "bench": "--subjects sit-64 --methods ghost --rounds 1 --no-memory",
    "coverage": "--repeats 1 --only normal",
    "fit-demo-vae": "--steps 1 --out new",
    "fit-demo-teacher": "--steps 1 --out new",
    "fit-demo-attributes": "--steps 1 --out new",
}


def prepare(place: Path, run: Path) -> None:
    """What the lines name: a run, and files and folders that are no good."""
    place.mkdir(parents=True)
    shutil.copytree(run, place / "run")
    (place / "empty").mkdir()
    (place / "pictures" / "cat").mkdir(parents=True)
    (place / "pictures" / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    (place / "deep.json").write_text('{"model": ' + "[" * 100_000)
    (place / "text.txt").write_text("nothing")
    (place / "text.pt").write_text("nothing")
    (place / "empty.parquet").touch()
    os.mkfifo(place / "pipe")
    (place / "loop").symlink_to("loop")
    with zipfile.ZipFile(place / "bomb.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 26))


def flags_of(name: str) -> dict[str, bool]:
    """flag -> whether it is a switch, of a command; those of configurations and probes too."""
    parser = declared(file_of(commands.COMMANDS[name].module), "_parser")()
    flags = {flag: action.nargs == 0 for flag, action in parser._option_string_actions.items() if flag not in ("-h", "--help")}
    options: dict[str, str] = {}
    if name in ("train", "grid", "loader"):
        options = import_module("gsnr.train.command")._known()
    elif name == "probe":
        from gsnr.options import kinds

        command = import_module("gsnr.probes.common.command")
        options = {key: kind for cls in command._classes().values() for key, kind in kinds(cls).items()}
    return flags | {f"--{key.replace('_', '-')}": kind == "bool" for key, kind in options.items()}


def value_for(rng: random.Random, flag: str) -> str:
    """An odd value. Outputs are named inside the folder alone: as root, a device or a system's folder could be written to."""
    if flag in ("--out", "--folder", "--picture"):
        return rng.choice(OUTPUTS)
    if flag in ("--ckpt", "--run", "--data", "--data.path", "--config", "--labels", "--align-from", "--plugins", "--vae", "--teacher"):
        return rng.choice(PATHS)
    return rng.choice(NUMBERS + WORDS + PATHS[:6])


def line(rng: random.Random, flags: dict[str, dict[str, bool]]) -> list[str]:
    """A command and its words."""
    name = rng.choice(list(flags))
    words = shlex.split(BASES[name])
    for _ in range(rng.randint(1, 3)):
        flag = rng.choice(list(flags[name]))
        kind = rng.random()
        if kind < 0.05:
            words += [f"--{rng.choice(['nope', 'optim.nope', flag[2:-1], flag[2:] + 's'])}", "1"]
        elif kind < 0.1:
            words.append(flag)
        elif flags[name][flag]:
            words += [f"{flag}=maybe"] if kind < 0.3 else [flag]
        else:
            words += [f"{flag}={value_for(rng, flag)}"] if kind < 0.5 else [flag, value_for(rng, flag)]
    return [name, *words]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """code: of the exit; None where the time was up. left: what lies in the folder that did not before."""

    code: int | None
    error: str
    left: set[str]

    @property
    def fault(self) -> str | None:
        if "Traceback" in self.error:
            return "traceback"
        if self.code not in (None, 0, 2):
            return f"exit code {self.code}"
        if self.code == 2 and (not self.error.startswith("error: ") or len(self.error.strip().splitlines()) > 1):
            return "more than one line"
        if self.code == 2 and self.left:
            return f"left behind {', '.join(sorted(self.left))[:200]}"
        return None


def tried(words: list[str], place: Path, seconds: float = SECONDS) -> Outcome:
    """Calls one line, and puts the folder back as it was."""
    before = {path.name for path in place.iterdir()}
    command = forked.Forked(words, place, ready=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)))
    code = command.end(seconds)
    left = {path.name for path in place.iterdir()} - before
    for name in left:
        path = place / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return Outcome(code=code, error=command.error, left=left)


def faults(n: int, seed: int, place: Path, seconds: float = SECONDS, say: Callable[[str], None] = str) -> tuple[list[str], Counter[str]]:
    """The lines at fault, with what they say, also told to `say` at once; and how often each exit code came (None: still at work)."""
    rng, found, codes = random.Random(seed), [], Counter[str]()
    flags = {name: flags_of(name) for name in BASES}
    forked.imported(BASES)
    for _ in range(n):
        words = line(rng, flags)
        outcome = tried(words, place, seconds)
        codes[str(outcome.code)] += 1
        if outcome.code is None:
            say(f"still at work: gsnr {shlex.join(words)[:500]}")
        if outcome.fault is not None:
            found.append(f"{outcome.fault}: gsnr {shlex.join(words)[:500]}\n{outcome.error[-1500:]}")
            say(found[-1])
    return found, codes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="lines (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the lines (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gsnr-fuzz-") as folder:
        os.environ.setdefault("GSNR_CACHE", str(Path(folder) / "cache"))
        run = Path(folder) / "run"
        import_module("gsnr.train.command").main(["--preset", "smoke", "--steps", "2", "--out", str(run)])
        prepare(Path(folder) / "place", run)
        found, codes = faults(args.n, args.seed, Path(folder) / "place", say=lambda text: print(text, flush=True))
    print(f"{args.n} lines, seed {args.seed}: {len(found)} at fault; exit codes {dict(codes)} (None: still at work after {SECONDS:.0f} s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
