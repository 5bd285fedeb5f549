"""Wrong input that can be told from words and the disk is refused before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

ASK = """
import sys
from gsnr import commands
for line in sys.stdin.read().splitlines():
    name, *words = line.split()
    try:
        commands._called(commands.COMMANDS[name], words)
    except (ValueError, SystemExit) as error:
        print(line, "->", "LATE" if "torch" in sys.modules else "early", error)
    if "torch" in sys.modules:
        break
"""


def test_before_heavy_imports(tmp_path: Path) -> None:
    """It took 8 s of a processor to be told of a missing folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    new = f"--out {tmp_path / 'new'}"
    asked = {
        f"train --preset nope {new}": "nope",
        f"train --preset demo --nope 3 {new}": "--nope",
        f"train --preset demo --batch 0 {new}": "batch 0",
        f"train --preset demo --precision bf6 {new}": "choose from no, bf16, fp16",
        f"train --preset demo --alignment nope {new}": "nope",
        f"train --preset demo --alignment.weight x {new}": "alignment.weight",
        f"train --preset ahpa-b2 --data {tmp_path / 'gone'} {new}": "gone: not a gsnr cache (no such folder)",
        f"train --preset demo --out {tmp_path / 'run'}": "already holds a run",
        f"train --preset demo --out {tmp_path / 'full'}": "exists and is not a run",
        "probe --ckpt gone": "gone: no such run or checkpoint folder",
        f"probe --ckpt {tmp_path} --align-from gone": "gone: no such run or checkpoint folder",
        f"probe --ckpt {tmp_path} --data gone": "--data gone: not a gsnr cache (no such folder)",
        f"probe --ckpt {tmp_path} --weights mean": "--weights 'mean' does not exist; choose from ema, raw",
        "probe --ckpt gone --probe nope": "nope",
        "probe --ckpt gone --bins 0": "--bins 0",
    }
    done = subprocess.run([sys.executable, "-c", ASK], cwd=REPO, input="\n".join(asked), capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    for line, (words, said) in zip(lines, asked.items(), strict=False):
        assert line.startswith(f"{words} -> early") and said in line + done.stderr, line
    assert len(lines) == len(asked), done.stdout + done.stderr


def test_every_preset_passes_the_early_checks(tmp_path: Path) -> None:
    """They read an alignment's options without its file's imports."""
    from gsnr.train import command, presets

    for row, sizes in ((name, (*row.sizes, presets.DEMO)) for name, row in presets.ROWS.items()):
        for size in sizes:
            command._check_early([presets.at(row, size), {"data": {"path": "demo"}}], tmp_path / "new", resume=False)


@pytest.mark.parametrize("words", [("--only", "nope"), ("--nope",)])
def test_a_wrong_stage_is_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    from tests.gpu.__main__ import main

    with pytest.raises(SystemExit):
        main(list(words))
    assert len(capsys.readouterr().err.splitlines()) == 1
