"""Every figure keeps the contract, wherever its file lies; a broken one is refused in one line that names it; a stranger's is drawn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gsnr import plugins, table
from gsnr.figures import _examples, command, contract
from tests.conftest import REPO, call

STRANGER = '''"""Mean loss of each target."""

from matplotlib.figure import Figure

from gsnr.figures._curves import keys_of, one_checkpoint, rows_of
from gsnr.figures.style import paper
from gsnr.figures.targets import Targets

TABLE = "alignment"
TITLE = "Alignment loss of each target"
CAPTION = "Mean over bins."


def draw(cells):
    one_checkpoint(cells)
    targets, cells = Targets(cells), cells[cells["group"] == "all"]
    if cells.empty:
        raise ValueError("fig_stranger: no rows of group 'all'")
    with paper():
        figure = Figure()
        axes = figure.subplots()
        for i, key in enumerate(keys_of(cells)):
            axes.plot(rows_of(cells, key)["loss"].mean(), i, **targets.style(key), label=targets.name(key))
        axes.set(xlabel="loss", ylabel="target")
        axes.legend(handles=axes.get_lines())
    return figure
'''


@pytest.mark.parametrize("name", plugins.names("figures"))
def test_every_figure_keeps_it(name: str) -> None:
    said = contract.check(name)
    assert len(said) == 4 and said[-1] == "imports no torch"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "plugins" / f"fig_{tmp_path.name}.py"
    path.parent.mkdir()
    path.write_text(STRANGER)
    monkeypatch.setenv(plugins.ENVIRONMENT, str(path))
    return path


def test_a_strangers_figure_is_drawn(stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "draws 320 rows on 1 labelled axes" in contract.check(stranger.stem)[1]
    run = tmp_path / "run"
    table.write(run / "probes" / "alignment.parquet", "cells", _examples.EXAMPLES["alignment"]("run", "alignment"), {"labels": _examples.LABELS})
    assert call(command.main, "--run", run, "--figure", stranger.stem) == 0
    assert {path.name for path in (run / "figures").iterdir()} == {f"{stranger.stem}.{suffix}" for suffix in ("png", "pdf", "svg")}
    drawn = command.find(stranger.stem).draw(command.table_of([run], command.find(stranger.stem)))
    labels = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert "Unheard of" in labels and "AHPA, own projector" in labels


def test_a_strangers_probe_has_an_example(stranger: Path) -> None:
    """TABLE of another's probe: nothing to draw unless the file brings rows."""
    own = STRANGER.replace('"alignment"', '"of_mine"')
    stranger.write_text(own)
    with pytest.raises(ValueError, match=r"no example of a table 'of_mine'; add a function example\(\)"):
        contract.check(stranger.stem)


def test_a_strangers_example_is_drawn(stranger: Path) -> None:
    own = STRANGER.replace('"alignment"', '"of_mine"').replace(
        "from matplotlib.figure", "from gsnr.figures import _examples\nfrom matplotlib.figure", 1
    )
    stranger.write_text(own + '\n\ndef example():\n    return _examples.EXAMPLES["alignment"]("me", TABLE)[:16]\n')
    assert "draws 16 rows" in contract.check(stranger.stem)[1]


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ('CAPTION = "Mean over bins."\n', "", "has no text CAPTION"),
        ('"Mean over bins."', '"Mean over bins"', "CAPTION is plain sentences"),
        ('"Mean over bins."', '" "', "CAPTION is empty"),
        ('TITLE = "Alignment loss of each target"', "TITLE = 3", "has no text TITLE"),
        ('of each target"\n', 'of each target."\n', "TITLE is a heading"),
        ('TABLE = "alignment"', 'TABLE = "alignment"\nKIND = "pictures"', "KIND 'pictures' does not exist; choose from cells"),
        ('TABLE = "alignment"', 'TABLE = "alignment"\nSEVERAL_RUNS = 1', "SEVERAL_RUNS is 1"),
        ("    return figure\n", "    return axes\n", "draw gives Axes, not a matplotlib Figure"),
        ('["loss"]', '["losses"]', "draw fails on a table of alignment (KeyError: 'losses')"),
        ('xlabel="loss", ', "", "axes 1 of 1 have no label of x"),
        ('axes.set(xlabel="loss", ylabel="target")', "", "axes 1 of 1 have no label; say what x and y are"),
        ("    if cells.empty:\n        raise ValueError(\"fig_stranger: no rows of group 'all'\")\n", "", "draw gives a figure, and no ValueError"),
        ('raise ValueError("fig_stranger', 'raise KeyError("fig_stranger', "draw raises KeyError"),
        ("    one_checkpoint(cells)\n", "    one_checkpoint(cells)\n    cells['loss'] += 1\n", "draw changes the table"),
        ("keys_of(cells)):", "keys_of(cells)):\n            i = __import__('random').random()", "draw gives two pictures of one table"),
        ("        figure = Figure()", "        import torch\n        figure = Figure()", "it imports torch, which figures must not"),
        (
            "        figure = Figure()",
            "        import os, sys\n        print(1) if 'torch' in sys.modules else os._exit(3)\n        figure = Figure()",
            "drawn in a process of its own: its process ends with exit code 3",
        ),
    ],
)
def test_a_broken_figure_is_refused(stranger: Path, was: str, now: str, message: str) -> None:
    assert STRANGER.count(was) == 1, was
    stranger.write_text(STRANGER.replace(was, now))
    with pytest.raises(ValueError) as error:
        contract.check(stranger.stem)
    text = str(error.value)
    assert message in text and text.startswith(f"{stranger}: ") and len(text.splitlines()) == 1


def test_a_table_that_no_probe_writes_is_asked_of_the_command_that_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judged.parquet: no such table; measure it with `gsnr recommend --ckpt RUN --forks FORKS`"):
        command.table_of([tmp_path], command.find("fig_criteria"))


PATIENCE_SEC = 120  # a machine may be busy; what is waited for takes two seconds on one that is not
# Asks for a figure that is never done, while a fork holds all its pipes.
ASKS = """
import os, sys, time
from gsnr.figures import _alone
answered = _alone.wrong("fig_quick", [])
if not os.fork():
    time.sleep(600)
    os._exit(0)
if sys.argv[1] == "in the midst":
    _alone.wrong("fig_slow", [])
"""


@pytest.mark.parametrize(("when", "number"), [("at the end", 0), ("in the midst", signal.SIGKILL), ("in the midst", signal.SIGTERM)])
def test_who_draws_ends_with_who_asks(when: str, number: int, tmp_path: Path) -> None:
    """It would wait for the end of its stdin, which a fork of who asks still holds; and who asks, at its own end, for it."""
    says = "import os\nfrom pathlib import Path\nPath('{}').write_text(str(os.{}()))\n{}\ndef draw(): pass\n"
    (tmp_path / "fig_quick.py").write_text(says.format("server", "getppid", ""))
    (tmp_path / "fig_slow.py").write_text(says.format("drawing", "getpid", "os.read(os.pipe()[0], 1)"))
    there = os.environ | {"PYTHONPATH": str(REPO), "GSNR_PLUGINS": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", ASKS, when], cwd=tmp_path, env=there, start_new_session=True) as asks:
        try:
            if number:
                _until(lambda: (tmp_path / "drawing").is_file() and bool((tmp_path / "drawing").read_text()))
                asks.send_signal(number)
            assert asks.wait(PATIENCE_SEC) == -number
            pids = [(tmp_path / name).read_text() for name in ("server", "drawing")[: 1 + bool(number)]]
            _until(lambda: not any(_runs(pid) for pid in pids))
        finally:
            os.killpg(asks.pid, signal.SIGKILL)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SEC
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: str) -> bool:
    said = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
    return bool(said) and not said.startswith("Z")
