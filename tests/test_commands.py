"""Commands in processes of their own: exit codes, one clear line, no traceback, nothing half-written."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gsnr import commandline, commands
from tests.conftest import REPO, call, run_module


def test_how_a_command_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C is said below the ^C of the terminal, and a recursion of our own is no bad input."""

    def raises(error: BaseException) -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        commandline.run(lambda: raises(KeyboardInterrupt()), "gsnr x", "")
    assert end.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"
    with pytest.raises(RecursionError):
        commandline.run(lambda: raises(RecursionError()), "gsnr x", "")


def test_a_link_that_leads_to_itself_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(Path, "resolve", lambda self: self)  # from Python 3.13 on it raises nothing
    for word in ("loop", "loop/x"):
        with pytest.raises(argparse.ArgumentTypeError, match="is a link that leads to itself"):
            commandline.a_path(str(tmp_path / word))
    for word in ("nowhere", "x" * 300, "/dev/null/x"):
        assert commandline.a_path(word) == Path(word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gsnr.probe", "--ckpt", "nowhere"), "nowhere: no such run or checkpoint folder"),
        (("gsnr.probe", "--ckpt", "runs", "--bins", "zero"), "--bins: 'zero' is not of type int"),
        (("gsnr.probe", "--nope"), "unknown option 'nope' (see --help)"),
        (("gsnr.probe",), "--ckpt is needed"),
        (("train", "--preset", "nope", "--out", "x"), "preset 'nope' does not exist; choose demo, smoke, or ROW-demo"),
        (("train", "--preset", "smoke", "--out", "x", "--optim.nope", "1"), "unknown option 'optim.nope'"),
        (("train", "--preset", "smoke", "--out", "x", "--batch"), "--batch needs a value"),
        (("train", "--preset", "smoke"), "--out is needed, the run folder to create"),
        (("train", "--preset", "sit-b2", "--data.path", "nowhere", "--out", "x"), "nowhere: not a gsnr cache"),
        (("train", "--config", "nowhere.json", "--out", "x"), "--config nowhere.json: cannot be read"),
        (("train", "--preset", "smoke", "--out", ""), "argument --out: names nothing"),
        (("figures", "--run", "nowhere"), "argument --run: nowhere: no such folder"),
        (("figures", "--run", "."), "no tables; measure first with `gsnr probe --ckpt .`"),
        (("figures", "--run", ".", "--figure", "fig9"), "figure 'fig9' does not exist; choose from "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--out", "x"), "--data.path is missing"),
        (("train", "--preset", "sit-b2", "--out", "x"), "--data.path is missing"),
        (("train", "--preset", "smoke", "--out", "/proc/x"), "--out /proc/x: cannot be written to"),
        (("sample", "--ckpt", "nowhere"), "nowhere: no such run"),
        (("evaluate", "--ckpt", "nowhere"), "nowhere: no such run"),
        (("convert", "--ckpt", "nowhere.pt", "--out", "x"), "nowhere.pt: no such file"),
        (("figures", "--run", ".", "--figure", ""), "--figure '': names nothing; choose from fig2_gsnr, "),
        (("figures", "--run", ".", "--figure", "fig_beta,fig_beta"), "names 'fig_beta' twice"),
        (("recommend", "--ckpt", "x", "--data", ""), "argument --data: names nothing"),
        (("evaluate", "--ckpt", "x", "--data", ""), "argument --data: names nothing"),
        (("recommend", "--ckpt", "x", "--criteria", ""), "--criteria '': names nothing; choose from balance, "),
        (("bench", "--methods", ""), "--methods '': names nothing; choose from "),
        (("cost", "--rows", "sit,sit"), "--rows 'sit,sit': names 'sit' twice"),
        (("evaluate", "--ckpt", "x", "--metrics", ""), "--metrics '': names nothing; choose from "),
        (("convert", "--ckpt", "nowhere.pt"), "the following arguments are required: --out"),
    ],
)
def test_bad_input_that_is_seen_late(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """After the imports, which take seconds: `gsnr` in this process. Above are those that show the imports to be silent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gsnr", *words])
    with pytest.raises(SystemExit) as end:
        commands.main()
    said = capfd.readouterr().err
    assert end.value.code == 2 and message in said
    assert len(said.strip().splitlines()) == 1, said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["train", "gsnr.probe", "figures", "train.sample", "train.evaluate", "train.prepare", "train.convert"])
def test_modules_of_a_checkout_teach(module: str) -> None:
    done = run_module(module, "--help")
    assert done.returncode == 0
    assert f"gsnr {module.rpartition('.')[2]}" in done.stdout and len(done.stdout.splitlines()) > 8


def test_presets_are_listed() -> None:
    done = run_module("train", "--list-presets")
    assert done.returncode == 0
    assert {"ahpa", "sit", "repa", "multi"} <= {line.split()[0] for line in done.stdout.splitlines() if line}


def test_figures_are_written(probed_run: Path, tmp_path: Path) -> None:
    from gsnr.figures.command import main

    assert call(main, "--run", probed_run, "--figure", "fig2_gsnr,fig5_router", "--out", tmp_path) == 0
    for name in ("fig2_gsnr", "fig5_router"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 600
            assert np.asarray(image.convert("L")).std() > 10, "something is drawn"
    assert b"/FontFile2" in (tmp_path / "fig2_gsnr.pdf").read_bytes(), "fonts are embedded as TrueType"


def test_runs_side_by_side(probed_run: Path, tmp_path: Path) -> None:
    """beta of two seeds of one method and of another method: two panels; a figure of one run refuses several."""
    from gsnr import table
    from gsnr.figures import fig_beta
    from gsnr.figures.command import main

    tables = table.read(probed_run / "probes" / "router.parquet")
    runs = pd.concat([tables.assign(run=name) for name in ("raw-s0", "raw-s1", "standardised-s0")], ignore_index=True)
    drawn = fig_beta.draw(runs)
    panels = [axes for axes in drawn.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels][:2] == ["(a) raw, 2 seeds", "(b) standardised"]
    other = tmp_path / "another"
    shutil.copytree(probed_run / "probes", other / "probes")
    assert call(main, "--run", probed_run, "--run", other, "--out", tmp_path / "figures") == 0
    written = {p.name for p in (tmp_path / "figures").iterdir()}
    assert written >= {f"{name}.{suffix}" for name in ("fig_beta", "fig_methods") for suffix in ("pdf", "png", "svg")}
    assert not {f"{name}.png" for name in ("fig2_gsnr", "fig4_pca", "fig5_router", "fig_blocks", "fig_controls", "fig_direction")} & written
    assert call(main, "--run", probed_run, other, "--figure", "fig_beta", "--out", tmp_path / "again") == 0, "several in one --run are the same"
    assert {p.name for p in (tmp_path / "again").iterdir()} == {"fig_beta.pdf", "fig_beta.png", "fig_beta.svg"}
    with pytest.raises(ValueError, match=r"does not exist; .*fig2_gsnr, .*fig4_pca, .*fig5_router"):
        call(main, "--run", probed_run, "--run", other, "--figure", "fig9")
    with pytest.raises(ValueError, match="figure 'fig2_gsnr' is of one run; 2 were named with --run"):
        call(main, "--run", probed_run, "--run", other, "--figure", "fig2_gsnr")
    with pytest.raises(ValueError, match=f"--run: two of the folders are called '{probed_run.name}'"):
        call(main, "--run", probed_run, "--run", probed_run)
    with pytest.raises(ValueError, match=r"13 methods .* and room for 12"):
        fig_beta.draw(pd.concat([tables.assign(run=f"m{i}") for i in range(13)], ignore_index=True))


def test_figures_that_a_table_cannot_give_are_left_out(
    probed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table without controls: the others are drawn, and the command says which is not. A folder of tables will do."""
    from gsnr import table
    from gsnr.figures import command
    from gsnr.figures.command import main

    monkeypatch.setattr(command, "FORMATS", ("svg",))
    path = probed_run / "probes" / "alignment.parquet"
    cells = table.read(path)
    table.write(tmp_path / "alignment.parquet", "cells", cells[cells["control"] == "none"].to_dict("records"), table.provenance(path))
    assert call(main, "--run", tmp_path, "--out", tmp_path / "figures") == 0
    printed = capsys.readouterr().out
    assert "fig_controls is left out: the table has no controls" in printed
    written = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert written >= {"fig2_gsnr", "fig_blocks", "fig_direction"} and not {"fig_controls", "fig5_router", "fig_methods"} & written
    with pytest.raises(ValueError, match="the table has no controls"):
        call(main, "--run", tmp_path, "--figure", "fig_controls", "--out", tmp_path / "figures")
    with pytest.raises(ValueError, match="has no rows of group 'all'"):
        from gsnr.figures import fig2_gsnr

        fig2_gsnr.draw(cells[cells["group"] == "label"])


def test_a_damaged_table_is_an_error_whatever_else_can_be_drawn(probed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsnr.figures import command
    from gsnr.figures.command import main

    monkeypatch.setattr(command, "FORMATS", ("svg",))
    shutil.copytree(probed_run / "probes", tmp_path / "probes")
    path = tmp_path / "probes" / "router.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"router.parquet: "):
        call(main, "--run", tmp_path)
    assert not any((tmp_path / "figures").glob("*"))


def test_a_figure_whose_table_is_missing_names_the_command(smoke_run: Path, plain_run: Path) -> None:
    from gsnr.figures.command import main

    with pytest.raises(ValueError, match=r"--probe router"):
        call(main, "--run", plain_run, "--figure", "fig5_router")


def test_evaluate_and_sample(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from gsnr.train import evaluate, sample

    assert call(evaluate.main, "--ckpt", smoke_run, "--n-images", "32") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["velocity_loss"] > 0 and result["ratio"] == pytest.approx(result["velocity_loss"] / result["input_blind_loss"], rel=1e-3)
    assert result["input_blind_loss"] == pytest.approx(2, abs=0.4), "1 from the noise and the variance of a final latent, about 1"
    with pytest.raises(ValueError, match="has 256"):
        call(evaluate.main, "--ckpt", smoke_run, "--n-images", "300")
    out = tmp_path / "grid.png"
    words = ("--ckpt", smoke_run, "--per-class", "2", "--classes", "3", "--sampling-steps", "2", "--cfg", "2", "--out", out)
    assert call(sample.main, *words) == 0
    with Image.open(out) as image:
        assert image.size == (24 + 2 * 128, 3 * 128)


def test_shipped_vae_reaches_25_db() -> None:
    """The whole held-out split takes `gsnr fit-demo-vae --check` 20 s; here 128 of its images, and what made.json says."""
    from gsnr.train import vae
    from gsnr.train.demo import fit_vae as fit
    from gsnr.train.demo import images as demo
    from gsnr.train.priors.features import to_pixels
    from gsnr.train.vae import DEMO_FOLDER

    made = json.loads((DEMO_FOLDER / "made.json").read_text())
    assert made["heldout_psnr_db_mean"] >= 25 and made["demo_data_version"] == demo.VERSION
    assert sum(f.stat().st_size for f in DEMO_FOLDER.iterdir()) < 4e6
    x = to_pixels(demo.images("heldout", 128)[0])
    db = fit.psnr_db(fit.reconstruct(vae.load("demo").model, x), x)
    assert float(db.mean()) >= 25
    numpy = ((x.numpy() + 1) * 127.5).round() / 255
    assert float(fit.psnr_db(x[:4] * 0.9, x[:4])[1]) == pytest.approx(
        -10 * np.log10(np.mean((((x[1].numpy() * 0.9 + 1) * 127.5).round() / 255 - numpy[1]) ** 2)), rel=1e-3
    )
