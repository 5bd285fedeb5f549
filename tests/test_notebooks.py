"""Every notebook runs top to bottom on the smoke run, and the committed ones hold outputs and no logic."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import write_connection_file
from nbclient import NotebookClient

from tests.conftest import REPO
from tests.forked import Forked

NOTEBOOKS = sorted((REPO / "analysis_notebooks").glob("*.ipynb"))
TEXT = "from gsnr.probes.common import summary\n"  # prints tables as the probe command does, without torch


class Running(AsyncKernelManager):
    """Of a kernel that somebody else has started."""

    has_kernel = True


@pytest.fixture(scope="module")
def kernel() -> Callable[[], object]:
    """What a forked process becomes a kernel by. What all of them import, and is not ours, is imported once, here."""
    for name in ("IPython", "jinja2", "matplotlib.figure", "pandas", "pyarrow.parquet", "scipy.special"):
        import_module(name)
    return import_module("ipykernel.kernelapp").launch_new_instance


def as_new() -> None:
    """A process that has imported nothing of ours, with an event loop of its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "gsnr"]:
        del sys.modules[name]
    asyncio.set_event_loop(asyncio.new_event_loop())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_top_to_bottom(path: Path, kernel: Callable[[], object], probed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a kernel of its own, forked from this process."""
    monkeypatch.setenv("GSNR_RUN", str(probed_run))
    notebook, connection = nbformat.read(path, as_version=4), str(tmp_path / "kernel.json")
    write_connection_file(connection)
    process = Forked(["-f", connection], path.parent, ready=as_new, main=kernel)
    manager = Running(owns_kernel=False, connection_file=connection)
    manager.load_connection_file()
    try:
        NotebookClient(notebook, km=manager, timeout=120).execute(cleanup_kc=True)
    finally:
        process.end(0)
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs), "it shows its figure"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_holds_no_logic_and_shows_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = "\n".join(cell.source for cell in code).replace(TEXT, "")
    assert not any(word in text for word in ("def ", "class ", "import torch", "gsnr.train", "gsnr.probes"))
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell.outputs), "run `make notebooks` and commit the outputs"


def test_there_is_one_for_each_figure() -> None:
    assert {p.stem for p in NOTEBOOKS} >= {"start_here", "fig2_gsnr", "fig4_pca", "fig5_router", "tables", "dar"}
