"""Shared fixtures: a tiny trained run, made once a session by the commands a user types, in a cache of its own."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import forked

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
os.environ["OMP_NUM_THREADS"] = "1"  # as many workers as cores: each, and every process that a test starts, takes one (`tests.forked` needs that)
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # or torch.compile starts processes, which import torch
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"  # what the CPU says it can do is taken, and no trial of it compiled
gc.set_threshold(200_000, 20, 20)  # a tenth of the tests' time went into looking for cycles, of which there are few
REPO = Path(__file__).parent.parent
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this session see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _own_cache(shared: Path) -> None:
    """Nothing is read from or written to the user's ~/.cache/gsnr."""
    os.environ["GSNR_CACHE"] = str(shared / "cache")


def made_once(shared: Path, name: str, make: Callable[[Path], int]) -> Path:
    """The folder of that name that all workers read: who comes first makes it, while the others wait."""
    made, making = shared / name, shared / "making" / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            making.parent.mkdir(exist_ok=True)
            assert make(making) == 0
            making.rename(made)
    return made


@pytest.fixture(autouse=True)
def _new_accelerator() -> Iterator[None]:
    """Every test is a process of its own to accelerate."""
    yield
    forked.new_accelerator()


def run_module(*words: str | Path) -> subprocess.CompletedProcess:
    """`python -m words...` in a process of its own, as a user would."""
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=REPO, capture_output=True, text=True, timeout=600)


def call(main: Callable[[list[str]], int], *words: str | Path) -> int:
    """A command's main in this process (faster than a new one); raises what it raises."""
    return main([str(word) for word in words])


@pytest.fixture(scope="session")
def smoke_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of preset smoke (30 steps); every worker has a copy of its own."""
    return _copy_of_run(shared, tmp_path_factory, "smoke")


@pytest.fixture(scope="session")
def probed_run(smoke_run: Path, shared: Path) -> Path:
    """The same run with its tables: 3 bins, 24 images."""
    from gsnr.probes.common.command import main

    words = ("--bins", "3", "--n-images", "24", "--fit-samples", "256", "--train-images", "32")
    made = made_once(shared, "probes", lambda out: call(main, "--ckpt", shared / "smoke", *words, "--out", out))
    shutil.copytree(made, smoke_run / "probes")
    return smoke_run


@pytest.fixture(scope="session")
def plain_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any alignment (5 steps); every worker has a copy of its own."""
    return _copy_of_run(shared, tmp_path_factory, "plain", "--alignment", "none", "--steps", "5")


def _copy_of_run(shared: Path, tmp_path_factory: pytest.TempPathFactory, name: str, *words: str) -> Path:
    from gsnr.train.command import main

    made = made_once(shared, name, lambda out: call(main, "--preset", "smoke", *words, "--out", out))
    return shutil.copytree(made, tmp_path_factory.mktemp("runs") / name)
