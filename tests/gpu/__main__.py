"""`python -m tests.gpu`: what a CUDA machine says of this code, in under eight minutes: is it right there, and how fast?

    python -m tests.gpu                          every stage, to runs/gpu/gpu.json and gpu.md
    python -m tests.gpu --only exactness,engines
    python -m tests.gpu --toy                    the same code at toy sizes, on a CPU too: its numbers mean nothing

Stages run in order of worth, each in a process of its own and under a limit of time, and a stage that fails, hangs or runs out of memory costs
the others nothing: what it had found until then is reported, and why it ended. No network; nothing but this repository's files; PyTorch 2.6 or newer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit("error: PyTorch with CUDA is needed, of this machine's own: make gpu PYTHON=... (or PYTHON -m tests.gpu)")

from gsnr.commandline import Parser
from gsnr.files import replacing
from tests.gpu.report import markdown

STAGES = ("machine", "smoke", "exactness", "resume", "probe", "engines", "training")
Row = dict[str, Any]


def _child(stage: str, toy: bool, out: Path) -> None:
    """Runs one stage here; each row is on the disk as soon as it is known."""
    with out.open("a") as file:
        for row in importlib.import_module(f"tests.gpu.{stage}").rows(toy):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _why(log: Path, code: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"failed: {lines[-1].strip() if lines else f'exit code {code}'}"


def _run(stage: str, toy: bool, folder: Path, limit_s: float) -> dict[str, Any]:
    """One stage's record: title, status, seconds and rows."""
    module = importlib.import_module(f"tests.gpu.{stage}")
    rows, log = folder / f"{stage}.rows", folder / f"{stage}.log"
    rows.write_text("")
    command = [sys.executable, "-m", "tests.gpu", "--stage", stage, "--out", str(rows), *(["--toy"] if toy else [])]
    start, status = time.monotonic(), "ok"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit_s)
            status = "ok" if code == 0 else _why(log, code)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = f"stopped after {limit_s:.0f} s"
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    return {"stage": stage, "title": module.TITLE, "status": status, "seconds": round(time.monotonic() - start, 1), "rows": found}


def _stages(names: list[str], toy: bool, folder: Path, budget_s: float) -> Iterator[dict[str, Any]]:
    end = time.monotonic() + budget_s
    for name in names:
        left = end - time.monotonic()
        if left < 1:
            title = importlib.import_module(f"tests.gpu.{name}").TITLE
            yield {"stage": name, "title": title, "status": "not begun: the time was over", "seconds": 0.0, "rows": []}
            continue
        yield _run(name, toy, folder, min(left, importlib.import_module(f"tests.gpu.{name}").LIMIT_S))


def _write(folder: Path, records: list[dict[str, Any]]) -> None:
    for name, text in (("gpu.json", json.dumps(records, indent=1)), ("gpu.md", markdown(records))):
        with replacing(folder / name) as aside:
            aside.write_text(text)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m tests.gpu", __doc__ or "")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="folder for gpu.json, gpu.md and logs (default: runs/gpu)")
    parser.add_argument("--only", metavar="A,B", help=f"stages: {', '.join(STAGES)} (default: all, in this order)")
    parser.add_argument("--toy", action="store_true", help="toy sizes, and a CPU will do")
    parser.add_argument("--seconds", type=float, default=470, metavar="S", help="for all stages together (default: 470)")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.stage:
        _child(args.stage, args.toy, args.out)
        return 0
    names = list(STAGES) if args.only is None else args.only.split(",")
    for name in names:
        if name not in STAGES:
            parser.error(f"--only {name}: choose from {', '.join(STAGES)}")
    if not (args.toy or torch.cuda.is_available()):
        parser.error("no CUDA device here; --toy runs the same stages at toy sizes on a CPU")
    args.out.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for record in _stages(names, args.toy, args.out, args.seconds):
        records.append(record)
        _write(args.out, records)
        print(f"{record['stage']:10} {record['seconds']:6.1f} s  {len(record['rows']):3} rows  {record['status']}", flush=True)
    print(f"wrote {args.out / 'gpu.json'} and {args.out / 'gpu.md'}")
    return int(any(record["status"] != "ok" for record in records))


if __name__ == "__main__":
    sys.exit(main())
