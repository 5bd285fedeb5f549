"""`gsnr bench`: what per-sample gradient norms cost, as a ratio to one ordinary training step measured in the same run.

    gsnr bench                                             every subject this machine is for, every method
    gsnr bench --subjects sit-384,conv --methods ghost,vmap,backpack
    gsnr bench --json > bench.json                         the same as JSON
    gsnr bench --no-memory --rounds 3 --batches 1          quick

The ordinary step is forward and `loss.mean().backward()` over the same batches of 16. Every method returns ||g_i||^2 over all
parameters for each sample i, and S = sum_i g_i:

    loop, vmap, ghost              gsnr.measure(..., interval=False)    the moments: G-SNR without an interval
    vmap-interval, ghost-interval  gsnr.measure(..., interval=True)     and r_i = g_i . S over all batches, for the interval
    ghost-two-pass                 the same with memory_bytes=0         nothing is kept: the gradients are taken twice
    opacus, opacus-ghost, backpack, torchjd                             other libraries, batch by batch, where installed

Time: methods take turns, --rounds times, each at least 0.3 s a turn; the ratio is the median over rounds of method / step of that
round, with the least and the greatest. Memory: the peak above what was there before the call (model and data), as a ratio to the
step's; on a CPU from the resident set of a fresh process, which needs Linux, on a GPU from PyTorch's allocator. Error: the greatest
relative error of ||g_i||^2 on the first batch, against the loop in float64. A method that is off by more than 1e-3 there or in
||S||^2 "disagrees"; one that cannot do the model "refuses" and says why; neither is timed. TF32 is off for all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import gsnr
from gsnr import commands
from gsnr.batches import batch_size
from gsnr.benchmarks import peers
from gsnr.benchmarks.methods import METHODS, OURS, STEP, Method, errors, memory_of, prepare, reference, seconds
from gsnr.benchmarks.subjects import ON_A_GPU, SUBJECTS, Subject, build
from gsnr.commandline import Parser, choose, chosen, tell
from gsnr.estimates import Array

TOLERANCE = 1e-3  # what a peer may be off by; ours are held to far less by the tests
LEAST_S = 0.3  # of one turn
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # glibc: a freed tensor leaves the process


def _memory_apart(name: str, subject: Subject) -> int:
    """`memory_of`, on a CPU in a fresh process. Raises RuntimeError with its last line where that fails."""
    if torch.cuda.is_available():
        return memory_of(name, subject)
    command = [sys.executable, "-m", "gsnr", "bench", "--memory-of", name, "--subjects", subject.name, "--batches", str(len(subject.batches))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | RETURN_MEMORY)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"killed, exit code {done.returncode}").splitlines()[-1])
    return int(done.stdout)


def _admit(name: str, subject: Subject, truth: tuple[Array, float]) -> tuple[Method | None, dict[str, Any]]:
    """The method, warmed up, where it runs here and agrees; and the beginning of its row, whose status says why not."""
    row: dict[str, Any] = {"method": name, "status": "ok", "error": None, "time": None, "memory": None}
    if name in peers.PEERS and not peers.installed(name):
        return None, row | {"status": "not installed"}
    refusals = (ValueError, torch.OutOfMemoryError) if name in OURS else Exception
    try:
        method = prepare(name, subject)
        of_norms, of_sum = errors(method, subject, truth)
        if not (of_norms <= TOLERANCE and of_sum <= TOLERANCE):
            return None, row | {"status": f"disagrees: off by {of_norms:.1e} in ||g_i||^2, by {of_sum:.1e} in ||S||^2"}
        method(subject.batches)
        row["error"] = of_norms
    except refusals as error:
        return None, row | {"status": f"refuses: {(str(error).strip() or type(error).__name__).splitlines()[0]}"}
    return method, row


def measure_subject(subject: Subject, names: list[str], rounds: int, memory: bool) -> dict[str, Any]:
    """One subject's results, as in --json: the step's seconds and bytes over all batches, and one row a method with ratios to them."""
    truth = reference(subject)
    admitted = {name: _admit(name, subject, truth) for name in tqdm(names, desc=f"{subject.name}: checking", leave=False)}
    methods = {STEP: prepare(STEP, subject)} | {name: method for name, (method, _) in admitted.items() if method}
    methods[STEP](subject.batches)
    repeats = {name: math.ceil(LEAST_S / seconds(method, subject.batches)) for name, method in methods.items()}
    spent: dict[str, list[float]] = {name: [] for name in methods}
    for _ in tqdm(range(rounds), desc=f"{subject.name}: timing", leave=False):
        for name, method in methods.items():
            spent[name].append(seconds(method, subject.batches, repeats[name]))
    step_bytes = _memory_apart(STEP, subject) if memory else None
    for name in tqdm([name for name in methods if name != STEP], desc=f"{subject.name}: memory", leave=False, disable=not memory):
        row = admitted[name][1]
        ratios = [mine / step for mine, step in zip(spent[name], spent[STEP], strict=True)]
        row["time"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        if step_bytes is not None:
            try:
                row["memory"] = _memory_apart(name, subject) / step_bytes
            except RuntimeError as error:
                row["status"] = f"memory not measured: {error}"
    return {
        "subject": subject.name,
        "parameters": subject.parameters,
        "batch": batch_size(subject.batches[0]),
        "batches": len(subject.batches),
        "step": {"seconds": statistics.median(spent[STEP]), "bytes": step_bytes},
        "methods": [row for _, row in admitted.values()],
    }


def environment() -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    versions = {"gsnr": gsnr.__version__, "torch": torch.__version__} | peers.versions()
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions}


def text(result: dict[str, Any]) -> str:
    """One subject's table."""
    step = result["step"]
    memory = "" if step["bytes"] is None else f", {step['bytes'] / 2**20:.0f} MiB"
    lines = [
        f"\n{result['subject']}: {result['parameters'] / 1e6:.1f} M parameters; one ordinary step over {result['batches']} "
        f"batches of {result['batch']}: {step['seconds']:.3f} s{memory}",
        f"{'method':16}{'computes':22}{'time':>6}  {'[min-max]':15}{'memory':>7}{'error':>10}",
    ]
    for row in result["methods"]:
        start = f"{row['method']:16}{_computes(row['method']):22}"
        if row["time"] is None:
            lines.append(start + row["status"])
            continue
        time, spread = row["time"], f"[{row['time']['low']:.2f}-{row['time']['high']:.2f}]"
        memory = "-" if row["memory"] is None else f"{row['memory']:.2f}"
        note = "" if row["status"] == "ok" else f"  {row['status']}"
        lines.append(f"{start}{time['median']:6.2f}  {spread:15}{memory:>7}{row['error']:10.0e}{note}")
    return "\n".join(lines)


def _computes(name: str) -> str:
    if name in OURS:
        return "moments and interval" if OURS[name]["interval"] else "moments"
    return peers.COMPUTES[name]


def _parser() -> Parser:
    assert __doc__ is not None
    parser = Parser("gsnr bench", __doc__)
    parser.add_argument("--subjects", metavar="A,B", help=f"{', '.join(SUBJECTS)} (default: all; {', '.join(ON_A_GPU)} only on a GPU)")
    parser.add_argument("--methods", metavar="A,B", help=f"{', '.join(METHODS)} (default: all)")
    parser.add_number("--rounds", 5, "turns of each method", low=1, high=10**4, metavar="R")
    parser.add_number("--batches", 4, "batches of 16 in one call", low=1, high=10**4)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, which takes a process a method on a CPU")
    parser.add_argument("--memory-of", metavar="METHOD", help=argparse.SUPPRESS)  # what `_memory_apart` calls
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    usual = [name for name in SUBJECTS if gpu or name not in ON_A_GPU]
    subjects = usual if args.subjects is None else list(chosen("--subjects", args.subjects, SUBJECTS))
    methods = list(METHODS if args.methods is None else chosen("--methods", args.methods, METHODS))
    if not (args.no_memory or gpu or Path("/proc/self/clear_refs").exists()):
        raise ValueError("peak memory on a CPU is read from Linux's /proc, which is not there; add --no-memory")
    torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # peers hook the first layer, whose input has no gradient
    if args.memory_of is not None:
        choose("--memory-of", args.memory_of, (STEP, *METHODS))
        print(memory_of(args.memory_of, build(subjects[0], args.batches, device)))
        return 0
    found: dict[str, Any] = {"environment": environment(), "subjects": []}
    if not args.json:
        env = found["environment"]
        print(f"{env['device']}, {env['threads']} threads; {', '.join(f'{name} {version}' for name, version in env['versions'].items())}")
    for name in subjects:
        found["subjects"].append(measure_subject(build(name, args.batches, device), methods, args.rounds, not args.no_memory))
        if not args.json:
            tell(text(found["subjects"][-1]))
    if args.json:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    commands.run("bench")
