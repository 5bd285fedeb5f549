"""The wheel, used from a folder that holds what repositories of this field hold: its own train.py, utils.py, models/, probes.py, figures.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPO

HOSTILE = ("train.py", "utils.py", "models/__init__.py", "probes.py", "figures.py", "data/__init__.py", "sample.py", "evaluate.py", "config.py")
CHAIN = ("--probe", "alignment", "--targets", "own", "--controls", "none", "--bins", "1", "--n-images", "4", "--fit-samples", "128")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline, by the build backend itself, from a copy: it leaves folders of its own behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("gsnr", "train", "probes", "figures", "tests"):
        shutil.copytree(REPO / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip lays it out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise RuntimeError('the user\\'s {name} was imported')\n")
    return folder


def python(site: Path, folder: Path, *words: str) -> str:
    """What Python prints in that folder, with PYTHONPATH=. as many have it; the folder wins over everything installed."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([".", str(site)])}
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {n.partition("/")[0] for n in names} == {"gsnr", "gsnr-0.1.0.dist-info"}
    held = {"gsnr/py.typed", "gsnr/train/trainer.py", "gsnr/train/alignments/repa.py", "gsnr/probes/alignment.py", "gsnr/figures/fig2_gsnr.py"}
    assert held <= set(names)
    for folder in ("demo_vae", "demo_teacher"):
        assert {f"gsnr/train/demo/assets/{folder}/{n}" for n in ("config.json", "diffusion_pytorch_model.safetensors")} <= set(names)
    assert "gsnr = gsnr.commands:main" in scripts


@pytest.fixture(scope="module")
def said(site: Path, hostile: Path) -> str:
    """What one process prints there that asks for all the helps, trains and probes: it is the imports that could go wrong."""
    every = f"""
from gsnr.commands import COMMANDS, run
words = [(name, "--help") for name in COMMANDS]
words += [("train", "--preset", "smoke", "--steps", "2", "--out", "run"), ("probe", "--ckpt", "run", *{CHAIN})]
for name, *rest in words:
    try:
        run(name, rest)
    except SystemExit as end:
        assert not end.code, name
import gsnr
print(gsnr.__file__, gsnr.load_model.__module__)
"""
    return python(site, hostile, "-c", every)


def test_every_command_in_a_hostile_folder(site: Path, hostile: Path, said: str) -> None:
    """None imports what lies in the folder."""
    assert f"{site / 'gsnr' / '__init__.py'} gsnr.train.runs.checkpoint" in said
    assert said.count("usage: gsnr ") >= 16
    assert "usage: gsnr" in python(site, hostile, "-m", "gsnr", "--help")
    assert "alignment " in python(site, hostile, "-m", "gsnr.probe", "--list")


def test_trained_and_probed_in_a_hostile_folder(hostile: Path, said: str) -> None:
    assert (hostile / "run" / "probes" / "alignment.parquet").is_file() and "usage: gsnr probe" in said


def test_a_client_sees_types(site: Path, tmp_path: Path) -> None:
    """Those of the wheel: packages that it imports are not followed, which would take minutes."""
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = skip\n[mypy-gsnr,gsnr.estimates,gsnr.results]\nfollow_imports = silent\n")
    (tmp_path / "client.py").write_text("import gsnr\n\n\ndef f(result: gsnr.Result) -> str:\n    return result['all'].gsnr\n")
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-m", "mypy", "client.py"], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert 'Incompatible return value type (got "float", expected "str")' in done.stdout, done.stdout
    assert len(done.stdout.strip().splitlines()) == 2, done.stdout


def test_nothing_is_imported_twice_in_a_checkout(tmp_path: Path) -> None:
    """`python -m train`: no file behind two modules (the file that runs as __main__ aside)."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import atexit, collections, pathlib, sys

def say():
    found = collections.defaultdict(dict)
    for name, module in sys.modules.items():
        if name != "__main__" and (file := getattr(module, "__file__", None)):
            found[pathlib.Path(file).resolve()][id(module)] = name
    ours = {{path: names for path, names in found.items() if path.is_relative_to({str(REPO)!r}) and "site-packages" not in path.parts}}
    pathlib.Path({str(tmp_path / "modules")!r}).write_text(f"{{len(ours)}} {{[list(n.values()) for n in ours.values() if len(n) > 1]}}")

atexit.register(say)
"""
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = ("-m", "train", "--preset", "smoke", "--steps", "2", "--trackers", "none", "--out", str(tmp_path / "run"))
    done = subprocess.run([sys.executable, *words], cwd=REPO, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    count, twice = (tmp_path / "modules").read_text().split(" ", 1)
    assert int(count) > 30 and twice == "[]"
