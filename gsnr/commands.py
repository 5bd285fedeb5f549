"""The command `gsnr`, and the table of its subcommands. A command's code is imported when it is called, so that this knows of none.

Every command's module has `_parser()`, a `commandline.Parser`, and main(argv) -> exit code, which raises ValueError for bad input. For --help
the parser alone is evaluated (`gsnr.declared`): the module, which may import torch, is not imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from gsnr import commandline, plugins
from gsnr.declared import declared, file_of


@dataclass(frozen=True)
class Command:
    """module: where its main is. extra: what `pip install 'gsnr[EXTRA]'` it needs; "" for the plain package."""

    module: str
    extra: str
    summary: str


COMMANDS = {
    "probe": Command("gsnr.probes.common.command", "probe", "measure a checkpoint: G-SNR per target, block and t, and its controls"),
    "train": Command("gsnr.train.command", "train", "train a SiT, or an MMDiT on captions, with or without an alignment target"),
    "prepare": Command("gsnr.train.prepare.command", "train", "pictures become the cache that training and probes read"),
    "sample": Command("gsnr.train.sample", "train", "draw images from a checkpoint"),
    "evaluate": Command("gsnr.train.evaluate", "train", "held-out velocity loss of a checkpoint; FID and its kin of samples"),
    "convert": Command("gsnr.train.convert.command", "train", "a checkpoint of SiT, REPA, iREPA, SRA or REG becomes one of ours"),
    "verify": Command("gsnr.train.verify", "train", "is everything in a run or cache still as it was written?"),
    "grid": Command("gsnr.train.grid", "train", "train and evaluate several presets and seeds: one table"),
    "fork": Command("gsnr.train.fork", "train", "go on from one checkpoint with several alignments and with none: paired differences, and power"),
    "recommend": Command("gsnr.recommend", "all", "which target, block and t: all criteria of a checkpoint, their picks, and whether forks agree"),
    "cost": Command("gsnr.train.cost", "train", "what each alignment adds to a training step"),
    "loader": Command("gsnr.train.loader_benchmark", "train", "does training wait for its data?"),
    "figures": Command("gsnr.figures.command", "figures", "draw every figure that a run's tables allow"),
    "tables": Command("gsnr.figures.tables", "figures", "G-SNR averaged over t, per target: CSV, Markdown, LaTeX"),
    "verdict": Command("gsnr.figures.verdict", "figures", "which target, at which t, with or against denoising: in words, from a run's table"),
    "report": Command("gsnr.figures.report", "figures", "everything that was measured of some runs, on one HTML page"),
    "check-plugin": Command("gsnr.plugin_check", "all", "hold a plug-in of yours (alignment, sampler, probe, figure, metric, ...) to its contract"),
    "bench": Command("gsnr.benchmarks.bench", "", "what per-sample gradients cost, beside other libraries"),
    "coverage": Command("gsnr.benchmarks.coverage", "", "how often the intervals cover the truth, by simulation"),
    "fit-demo-vae": Command("gsnr.train.demo.fit_vae", "train", "train or check the demo's VAE"),
    "fit-demo-teacher": Command("gsnr.train.demo.fit_teacher", "train", "train or check the demo's image teacher"),
    "fit-demo-attributes": Command("gsnr.train.demo.fit_attributes", "train", "train or check what names the attributes of the demo's captions"),
}


def run(name: str, argv: list[str] | None = None) -> NoReturn:
    """Runs one command with these words (default: those of the command line) and exits."""
    command = COMMANDS[name]
    words = sys.argv[1:] if argv is None else argv
    commandline.run(lambda: _called(command, words), f"gsnr {name}", command.extra)


def _called(command: Command, words: list[str]) -> int:
    words = plugins.take(words)
    if commandline.asks_for_help(words):  # said from the sources alone, in a fraction of the time that the imports take
        declared(file_of(command.module), "_parser")().parse_args(words)
    return import_module(command.module).main(words)


def _help() -> str:
    lines = [f"  {name:20}{command.summary}" for name, command in COMMANDS.items()]
    last = "every command takes --plugins PATH, a file or folder with alignments, probes, figures, ... of your own"
    return "\n".join(["usage: gsnr COMMAND ...    (gsnr COMMAND --help says what it takes)", "", *lines, "", last])


def main() -> NoReturn:
    """Entry point of `gsnr`."""
    plugged: list[str] = []
    words = sys.argv[1:]
    while words and words[0].partition("=")[0] == "--plugins":  # it may also stand before the command
        many = 1 if "=" in words[0] else 2
        plugged, words = plugged + words[:many], words[many:]
    name, *rest = words or ["--help"]
    if name in COMMANDS:
        run(name, plugged + rest)
    if name in ("-h", "--help"):
        commandline.run(lambda: print(_help()) or 0, "gsnr", "")
    if name == "--version":
        import gsnr

        commandline.run(lambda: print(gsnr.__version__) or 0, "gsnr", "")
    near = commandline.meant(name, COMMANDS)
    meant = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
    print(f"error: gsnr {name}: no such command; {meant}", file=sys.stderr)
    raise SystemExit(2)


def probe() -> NoReturn:
    """Entry point of `gsnr-probe`."""
    run("probe")


def train() -> NoReturn:
    """Entry point of `gsnr-train`."""
    run("train")
