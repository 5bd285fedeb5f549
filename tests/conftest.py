"""Shared fixtures: a tiny trained run, made once a session by the commands a user types, in a cache of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: each, and every process that a test starts, takes one
    os.environ["OMP_NUM_THREADS"] = "1"
REPO = Path(__file__).parent.parent
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the user's ~/.cache/gsnr."""
    os.environ["GSNR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield


@pytest.fixture(autouse=True)
def _new_accelerator() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run; every test is a process of its own to it."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


def run_module(*words: str | Path) -> subprocess.CompletedProcess:
    """`python -m words...` in a process of its own, as a user would."""
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=REPO, capture_output=True, text=True, timeout=600)


def call(main: Callable[[list[str]], int], *words: str | Path) -> int:
    """A command's main in this process (faster than a new one); raises what it raises."""
    return main([str(word) for word in words])


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of preset smoke (30 steps)."""
    from gsnr.train.command import main

    out = tmp_path_factory.mktemp("runs") / "smoke"
    assert call(main, "--preset", "smoke", "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def probed_run(smoke_run: Path) -> Path:
    """The same run with its tables: 3 bins, 24 images."""
    from gsnr.probes.common.command import main

    assert call(main, "--ckpt", smoke_run, "--bins", "3", "--n-images", "24", "--fit-samples", "256", "--train-images", "32") == 0
    return smoke_run


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any alignment (5 steps)."""
    from gsnr.train.command import main

    out = tmp_path_factory.mktemp("runs") / "plain"
    assert call(main, "--preset", "smoke", "--alignment", "none", "--steps", "5", "--out", out) == 0
    return out
