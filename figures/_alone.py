"""Is a figure drawn without torch? In processes of their own, forked from one that has imported what all figures do, and nothing else.

It starts with the first figure and ends with the process that asks, however that ends. A question is a line of JSON, [environment, folder, figure,
runs]; its answer is one, too.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from traceback import format_exception_only
from types import FrameType
from typing import IO, TextIO

import gsnr
from gsnr import plugins
from gsnr.figures import command


def wrong(name: str, runs: list[Path]) -> str:
    """What is wrong when the figure draws the tables of these runs by itself, in one line; "" for nothing."""
    place = os.pathsep.join(filter(None, (str(Path(gsnr.__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    questions, answers = _server(place, os.getpid())
    print(json.dumps([dict(os.environ), os.getcwd(), name, [str(run) for run in runs]]), file=questions, flush=True)
    answer = answers.readline()
    return json.loads(answer) if answer else f"{sys.executable} -m {__name__} does not work here"


@lru_cache(maxsize=1)
def _server(place: str, asked_by: int) -> tuple[IO[str], IO[str]]:
    """Where it reads and writes. One for each PYTHONPATH, and for each process: forks of one that asks must not share its answers."""
    words = [sys.executable, "-P", "-m", "gsnr.figures._alone", str(asked_by)]
    started = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": place},
        start_new_session=True,
    )
    assert started.stdin is not None and started.stdout is not None
    atexit.register(_end, started, asked_by)
    return started.stdin, started.stdout


def _end(started: subprocess.Popen[str], asked_by: int) -> None:
    if os.getpid() == asked_by:
        os.killpg(started.pid, signal.SIGKILL)  # forks of this process may hold its stdin open
        started.communicate()


def _end_with(parent: int) -> None:
    """Kills this process and its forks within a second of its parent's end, for which it looks: stdin may stay open for longer."""

    def look(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)


def serve(questions: TextIO) -> None:
    """Draws each figure that is asked for in a fork of this process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a figure prints is no answer
    for line in questions:
        print(json.dumps(_forked(*json.loads(line))), file=answers, flush=True)


def _forked(environment: dict[str, str], folder: str, name: str, runs: list[str]) -> str:
    heard, said = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(environment)
        try:
            os.chdir(folder)
            answer = _drawn(name, [Path(run) for run in runs])
        except BaseException as error:
            answer = format_exception_only(error)[-1].strip().splitlines()[-1]
        os.write(said, json.dumps(answer).encode())
        os._exit(0)
    os.close(said)
    with os.fdopen(heard) as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(answer) if answer else f"its process ends with exit code {status}"


def _drawn(name: str, runs: list[Path]) -> str:
    figure = plugins.find("figures", name)
    figure.draw(command.table_of(runs, figure))
    return "it imports torch, which figures must not" if "torch" in sys.modules else ""


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    serve(sys.stdin)
