"""Every notebook runs top to bottom on the smoke run, and the committed ones hold outputs and no logic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import REPO

NOTEBOOKS = sorted((REPO / "analysis_notebooks").glob("*.ipynb"))
TEXT = "from gsnr.probes.common import summary\n"  # prints tables as the probe command does, without torch


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_top_to_bottom(path: Path, probed_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a kernel of its own, forked from this process."""
    from tests.kernels import executed  # brings nbformat

    monkeypatch.setenv("GSNR_RUN", str(probed_run))
    notebook = executed(path, str(tmp_path / "kernel.json"))
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs), "it shows its figure"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_holds_no_logic_and_shows_its_outputs(path: Path) -> None:
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    text = "\n".join("".join(cell["source"]) for cell in code).replace(TEXT, "")
    assert not any(word in text for word in ("def ", "class ", "import torch", "gsnr.train", "gsnr.probes"))
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell["outputs"]), "run `make notebooks` and commit the outputs"


def test_there_is_one_for_each_figure() -> None:
    assert {p.stem for p in NOTEBOOKS} >= {"start_here", "fig2_gsnr", "fig4_pca", "fig5_router", "tables", "dar"}
